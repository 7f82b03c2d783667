"""HotpotQA's official scores (hotpot_evaluate_v1.py): answer, supporting facts, and both together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hf_longattn.data.answers import normalise
from hf_longattn.evaluation.described import DescribedMetric
from hf_longattn.evaluation.metrics.long_qa import overlap
from hf_longattn.evaluation.summaries import means_in_percent

Fact = tuple[str, int]
"""Title and number of a sentence."""
_VERBATIM = ("yes", "no", "noanswer")
QUESTION = {"answer": "string", "facts": [{"title": "string", "sentence": "int64"}]}
"""Types of a prediction or reference."""
NAMES = ("em", "f1", "prec", "recall")
_RIGHT = {"answer": "a red fox", "facts": [{"title": "Fox", "sentence": 1}]}
EXAMPLE = ([_RIGHT], [_RIGHT], "joint_f1")
"""Predictions and references that agree, and the score that is then 100; the tests compute it."""


class Hotpot(DescribedMetric):
    """Predictions and references are {answer, facts: list of {title, sentence}}.

    Returns a dict in per cent: em, f1, prec, recall of the answers, the same with sp_ of the supporting facts and with joint_ of both,
    their standard errors (f1_se, ...) for ten questions or more, and n, the number of questions.
    """

    items = (QUESTION, QUESTION)

    def _compute(self, predictions: list[dict[str, Any]], references: list[dict[str, Any]]) -> dict[str, float]:
        pairs = list(zip(predictions, references, strict=True))
        facts = [[[(fact["title"], fact["sentence"]) for fact in question["facts"]] for question in pair] for pair in pairs]
        return hotpot_scores(
            [(prediction["answer"], reference["answer"]) for prediction, reference in pairs], [(pair[0], pair[1]) for pair in facts]
        )


def hotpot_scores(answers: Sequence[tuple[str, str]], facts: Sequence[tuple[Iterable[Fact], Iterable[Fact]]]) -> dict[str, float]:
    """Means over questions of em, f1, prec and recall, in per cent. Names begin with ``sp_`` for supporting facts and with ``joint_`` for
    both (products of precision and recall, Yang et al. 2018, section 5.2). Standard errors are ``f1_se`` …

    Args:
        answers: predicted and gold text of each question.
        facts: predicted and gold supporting facts of each question.
    """
    rows = []
    for (text, gold_text), (supporting, gold_supporting) in zip(answers, facts, strict=True):
        answer, support = answer_score(text, gold_text), support_score(supporting, gold_supporting)
        precision, recall = answer[2] * support[2], answer[3] * support[3]
        rows.append((*answer, *support, answer[0] * support[0], _harmonic(precision, recall), precision, recall))
    return means_in_percent([prefix + name for prefix in ("", "sp_", "joint_") for name in NAMES], rows)


def answer_score(prediction: str, gold: str) -> tuple[float, float, float, float]:
    """Exact match, F1, precision and recall of an answer; yes and no must match as they are."""
    text, gold_text = normalise(prediction), normalise(gold)
    if text != gold_text and (text in _VERBATIM or gold_text in _VERBATIM):
        return 0.0, 0.0, 0.0, 0.0
    return float(text == gold_text), *overlap(text.split(), gold_text.split())


def support_score(prediction: Iterable[Fact], gold: Iterable[Fact]) -> tuple[float, float, float, float]:
    """Exact match, F1, precision and recall of a set of supporting facts."""
    facts, gold_facts = set(prediction), set(gold)
    return float(facts == gold_facts), *overlap(list(facts), list(gold_facts))


def _harmonic(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
