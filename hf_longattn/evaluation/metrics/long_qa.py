"""Exact match and F1 of the words of answers, as in SQuAD or TriviaQA, overall and by the length of the document."""

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
"""Pairs of exact match and F1 (0 … 1) -> their means in per cent, with standard errors."""


def compute(predictions: list[dict[str, Any]], references: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores of answers, as in SQuAD.

    Args:
        predictions: ``id`` and ``prediction_text`` for each question. An empty text means "no answer".
        references: ``id``, ``answers`` ({text, answer_start}) and ``length`` for each question. The length is the
            number of tokens of the document, and -1 if it is unknown.

    Returns:
        exact_match and f1 in per cent, their standard errors (exact_match_se, f1_se) for ten questions or more, n, the
        number of questions, and buckets, {"<=512": scores of the questions about documents of this length, ...}.
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

    Answers that consist only of articles are ignored. If there are no answers, only '' is correct.
    """
    return _best_score(normalise(prediction), [answer for answer in map(normalise, answers) if answer])


def score_alias(prediction: str, aliases: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 (0 … 1) against the best of ``aliases``, as in TriviaQA's script (triviaqa_evaluation.py).

    If there are no aliases, only '' is correct.
    """
    return _best_score(normalised_alias(prediction), [normalised_alias(alias) for alias in aliases])


def _best_score(prediction: str, answers: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 (0 … 1) against the best of ``answers``. All texts are normalised."""
    if not answers:
        is_right = float(not prediction)
        return is_right, is_right
    words = prediction.split()
    best = 0.0
    for answer in answers:
        answer_words = answer.split()
        common = sum((Counter(words) & Counter(answer_words)).values())
        if common:
            best = max(best, 2 * common / (len(words) + len(answer_words)))
    return float(prediction in answers), best
