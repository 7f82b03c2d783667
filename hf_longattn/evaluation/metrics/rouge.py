"""ROUGE-1, ROUGE-2 and ROUGE-L F-scores (Lin 2004), as the package ``rouge_score`` computes them without stemming: lower-cased words of
letters and digits; ROUGE-Lsum takes the union of the longest common subsequences of sentences (lines)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import datasets
import evaluate

from hf_longattn.evaluation.summaries import means_in_percent

NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_WORD = re.compile(r"[a-z0-9]+")
_KWARGS = """
predictions, references: list of texts.
Returns a dict: rouge1, rouge2, rougeL and rougeLsum in per cent, their standard errors (rouge1_se, ...), and n, the number of texts.
"""
EXAMPLE = (["a red fox"], ["a red fox"], "rougeL")
"""Predictions and references that agree, and the score that is then 100; the tests compute it."""


class Rouge(evaluate.Metric):
    """``evaluate.Metric`` with one predicted and one reference text each."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description=__doc__ or "", citation="", inputs_description=_KWARGS, features=features)

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return rouge_scores(predictions, references)


def rouge_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F-scores in per cent, with their standard errors over texts (``rouge1_se`` …) and the number of texts, ``n``."""
    return means_in_percent(NAMES, [rouge(prediction, reference) for prediction, reference in zip(predictions, references, strict=True)])


def rouge(prediction: str, reference: str) -> tuple[float, float, float, float]:
    """The four F-scores (0 … 1) of one text."""
    words, reference_words = _words(prediction), _words(reference)
    longest = len(_common(words, reference_words))
    rouge_l = _f1(longest, len(words), len(reference_words))
    return _ngrams(words, reference_words, 1), _ngrams(words, reference_words, 2), rouge_l, _summary(prediction, reference)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _ngrams(words: list[str], reference_words: list[str], size: int) -> float:
    counts, expected = (Counter(zip(*(row[at:] for at in range(size)), strict=False)) for row in (words, reference_words))
    return _f1((counts & expected).total(), counts.total(), expected.total())


def _summary(prediction: str, reference: str) -> float:
    """The union of what each reference sentence has in common with every predicted one; a word counts as often as both texts have it."""
    lines, reference_lines = ([_words(line) for line in text.splitlines()] for text in (prediction, reference))
    counts, expected = Counter(word for line in lines for word in line), Counter(word for line in reference_lines for word in line)
    totals = counts.total(), expected.total()
    hits = 0
    for reference_line in reference_lines:
        for at in sorted({at for line in lines for at in _common(reference_line, line)}):
            word = reference_line[at]
            if counts[word] > 0 and expected[word] > 0:
                hits += 1
                counts[word] -= 1
                expected[word] -= 1
    return _f1(hits, *totals)


def _common(words: list[str], reference_words: list[str]) -> list[int]:
    """Places in ``words`` of a longest common subsequence."""
    table = [[0] * (len(reference_words) + 1) for _ in range(len(words) + 1)]
    for i, word in enumerate(words):
        for j, match in enumerate(reference_words):
            table[i + 1][j + 1] = table[i][j] + 1 if word == match else max(table[i][j + 1], table[i + 1][j])
    places, i, j = [], len(words), len(reference_words)
    while i and j:
        if words[i - 1] == reference_words[j - 1]:
            places.append(i - 1)
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return places[::-1]


def _f1(hits: int, words: int, reference_words: int) -> float:
    return 2 * hits / (words + reference_words) if hits else 0.0
