"""ANLS, the score of DocVQA: average normalised Levenshtein similarity (Biten et al. 2019, Scene Text Visual Question Answering, eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence

from hf_longattn.evaluation.described import DescribedMetric
from hf_longattn.evaluation.summaries import means_in_percent

THRESHOLD = 0.5
"""Minimum distance of a wrong text, as a share of the longer text."""
EXAMPLE = (["12 euros"], [["13 euros", "12 Euros"]], "anls")
"""Predictions and references that agree, and the score that is then 100; the tests compute it."""


class Anls(DescribedMetric):
    """Predictions are texts, references lists of right texts. An empty prediction says "no answer".

    Without right texts, only an empty prediction is right. Returns a dict: anls in per cent, its standard error over questions (anls_se)
    for ten or more, and n. Case and the number of spaces do not count.
    """

    items = "string", ["string"]
    citation = """
@inproceedings{biten2019scene, title={Scene Text Visual Question Answering}, author={Biten, Ali Furkan and Tito, Ruben
  and Mafla, Andres and Gomez, Lluis and Rusinol, Mar{\\c{c}}al and Valveny, Ernest and Jawahar, C.V.
  and Karatzas, Dimosthenis}, booktitle={ICCV}, year={2019}}
"""

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        return means_in_percent(("anls",), [(similarity(prediction, answers),) for prediction, answers in pairs])


def similarity(prediction: str, answers: Sequence[str]) -> float:
    """1 minus the distance (0 to 1) from the nearest answer; 0 from :data:`THRESHOLD` on. Without answers, only "" is right."""
    if not answers:
        return float(not prediction.strip())
    distance = min(normalised_distance(_plain(prediction), _plain(answer)) for answer in answers)
    return 1 - distance if distance < THRESHOLD else 0.0


def normalised_distance(one: str, other: str) -> float:
    """Levenshtein distance of two texts, as a share of the longer text's characters."""
    longest = max(len(one), len(other))
    if abs(len(one) - len(other)) >= THRESHOLD * longest > 0:
        return 1.0  # far enough to be wrong, whatever the characters
    distances = list(range(len(other) + 1))
    for row, character in enumerate(one, start=1):
        previous, distances[0] = distances[0], row
        for column, letter in enumerate(other, start=1):
            changed = previous + (character != letter)
            previous = distances[column]
            distances[column] = min(changed, previous + 1, distances[column - 1] + 1)
    return distances[-1] / longest if longest else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
