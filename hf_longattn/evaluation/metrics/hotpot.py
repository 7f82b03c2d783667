"""HotpotQA's official scores (hotpot_evaluate_v1.py): answer, supporting facts, and both together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from hf_longattn.evaluation.metrics.long_qa import mean_and_error, normalise

Fact = tuple[str, int]
"""Title and number of a sentence."""
_WHOLE = ("yes", "no", "noanswer")
NAMES = ("em", "f1", "prec", "recall")


def hotpot_scores(answers: Sequence[tuple[str, str]], facts: Sequence[tuple[Iterable[Fact], Iterable[Fact]]]) -> dict[str, float]:
    """Means over questions, in per cent: em, f1, prec, recall of the answers; the same with ``sp_`` of the supporting facts, and with
    ``joint_`` of both (products of precision and recall, Yang et al. 2018, section 5.2); each with its standard error (``f1_se`` …).

    Args:
        answers: predicted and gold text of each question.
        facts: predicted and gold supporting facts of each question.
    """
    values: dict[str, list[float]] = {prefix + name: [] for prefix in ("", "sp_", "joint_") for name in NAMES}
    for (text, gold), (found, true) in zip(answers, facts, strict=True):
        answer, support = answer_score(text, gold), support_score(found, true)
        both = (answer[0] * support[0], 0.0, answer[2] * support[2], answer[3] * support[3])
        both = (both[0], _harmonic(both[2], both[3]), both[2], both[3])
        for prefix, scores in (("", answer), ("sp_", support), ("joint_", both)):
            for name, score in zip(NAMES, scores, strict=True):
                values[prefix + name].append(score)
    result: dict[str, float] = {}
    for name, single in values.items():
        mean, error = mean_and_error(single)
        result |= {name: 100 * mean, f"{name}_se": 100 * error}
    return result


def answer_score(prediction: str, gold: str) -> tuple[float, float, float, float]:
    """Exact match, F1, precision and recall of an answer; yes and no must match as they are."""
    found, true = normalise(prediction), normalise(gold)
    exact = float(found == true)
    common = sum((Counter(found.split()) & Counter(true.split())).values())
    if (found != true and (found in _WHOLE or true in _WHOLE)) or not common:
        return exact, 0.0, 0.0, 0.0
    precision, recall = common / len(found.split()), common / len(true.split())
    return exact, _harmonic(precision, recall), precision, recall


def support_score(prediction: Iterable[Fact], gold: Iterable[Fact]) -> tuple[float, float, float, float]:
    """Exact match, F1, precision and recall of a set of supporting facts."""
    found, true = set(prediction), set(gold)
    right = len(found & true)
    precision, recall = right / len(found) if found else 0.0, right / len(true) if true else 0.0
    return float(found == true), _harmonic(precision, recall), precision, recall


def _harmonic(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
