"""SQuAD's (or TriviaQA's) exact match and token F1 in per cent, overall and by tokens of the document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from ...data.qa_schemas import normalise, normalised_alias
from ..summaries import by_bucket, means_in_percent

EXAMPLE = (
    [{"id": "1", "prediction_text": "fox"}],
    [{"id": "1", "answers": {"text": ["fox"], "answer_start": [0]}, "length": 9}],
    "f1",
)
"""Identical predictions and references, and the name of the score that must then be 100. Used by tests."""


summarise = partial(means_in_percent, ("exact_match", "f1"))


def compute(predictions: list[dict[str, Any]], references: list[dict[str, Any]]) -> dict[str, Any]:
    """Predictions are {id, prediction_text}, references {id, answers: {text, answer_start}, length}.

    An empty prediction means "no answer". length: tokens of the document, -1 = unknown.

    Returns a dict: exact_match, f1, their standard errors (exact_match_se, f1_se) for ten questions or more, n, and
    buckets: {"<=512": the same, ...} without empty ones.
    """
    texts = {prediction["id"]: prediction["prediction_text"] for prediction in predictions}
    scores = []
    for reference in references:
        if reference["id"] not in texts:
            raise ValueError(f"no prediction for question {reference['id']!r}; every reference needs one")
        scores.append(score_answer(texts[reference["id"]], reference["answers"]["text"]))
    lengths = [reference["length"] for reference in references]
    return {**summarise(scores), "buckets": by_bucket(scores, lengths, summarise)}


def score_answer(prediction: str, answers: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 (0 … 1) against the best of ``answers``, as in SQuAD 2's script.

    Answers that consist of articles are ignored. Without answers, only '' is correct.
    """
    return _best_score(normalise(prediction), [answer for answer in map(normalise, answers) if answer])


def score_alias(prediction: str, aliases: Sequence[str]) -> tuple[float, float]:
    """TriviaQA's scores (triviaqa_evaluation.py) against the best of ``aliases``. Without aliases, only '' is
    correct."""
    return _best_score(normalised_alias(prediction), [normalised_alias(alias) for alias in aliases])


def _best_score(prediction: str, answers: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 against the best of ``answers``, all of them normalised."""
    if not answers:
        right = float(not prediction)
        return right, right
    words = prediction.split()
    counted = [(answer.split(), sum((Counter(words) & Counter(answer.split())).values())) for answer in answers]
    f1 = max(2 * common / (len(words) + len(right)) if common else 0.0 for right, common in counted)
    return float(prediction in answers), f1
