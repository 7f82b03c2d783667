"""Accuracy and macro F1 of document classification, overall and by document length, with counts and standard errors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

BUCKETS = (512, 1024, 2048, 4096, 8192)
"""Upper bounds of the length buckets, in tokens of the document."""

_DESCRIPTION = """
Accuracy and macro F1 of single-label classification, in per cent, over all documents and by their length in tokens. Macro F1 is the mean
over the classes that occur among labels or predictions; a class that is never rightly predicted counts 0.
"""
_KWARGS = """
predictions: list of class numbers.
references: list of {label, length}; length = tokens of the document.
buckets: upper bounds of the length buckets.
Returns a dict: accuracy, accuracy_se, macro_f1, macro_f1_se, n, and buckets: {"<=512": the same five, ...} without empty ones.
"""


class LongClassification(evaluate.Metric):
    """``evaluate.Metric`` with predictions of class numbers and references {label, length}."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("int64")
        features = datasets.Features({"predictions": number, "references": {"label": number, "length": number}})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation="", inputs_description=_KWARGS, features=features)

    def _compute(self, predictions: list[int], references: list[dict[str, int]], buckets: Sequence[int] = BUCKETS) -> dict[str, Any]:
        rows = [(one["length"], one["label"], found) for one, found in zip(references, predictions, strict=True)]
        result: dict[str, Any] = summarise([(label, found) for _, label, found in rows])
        names = [f"<={high}" for high in buckets] + [f">{buckets[-1]}"]
        result["buckets"] = {}
        for name, low, high in zip(names, (0, *buckets), (*buckets, math.inf), strict=True):
            inside = [(label, found) for length, label, found in rows if low < length <= high]
            if inside:
                result["buckets"][name] = summarise(inside)
        return result


def summarise(pairs: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Return accuracy and macro F1 of (label, prediction) pairs with their standard errors, in per cent, and the number of pairs; an error
    is 0 of fewer than two. That of macro F1 is the jackknife's."""
    counts, n = Counter(pairs), len(pairs)
    share = sum(count for (label, found), count in counts.items() if label == found) / max(1, n)
    error = math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else 0.0
    spread = 0.0
    if n > 1:
        without = {pair: _macro_f1(counts - Counter([pair])) for pair in counts}
        mean = sum(count * without[pair] for pair, count in counts.items()) / n
        spread = math.sqrt((n - 1) / n * sum(count * (without[pair] - mean) ** 2 for pair, count in counts.items()))
    scores = {"accuracy": share, "accuracy_se": error, "macro_f1": _macro_f1(counts), "macro_f1_se": spread}
    return {**{name: 100 * score for name, score in scores.items()}, "n": n}


def _macro_f1(counts: Counter[tuple[int, int]]) -> float:
    """The mean over the classes of counted (label, prediction) pairs of their F1."""
    right: Counter[int] = Counter()
    total: Counter[int] = Counter()
    for (label, found), count in counts.items():
        total.update({label: count})
        total.update({found: count})
        right.update({label: count * (label == found)})
    return sum(2 * right[each] / total[each] for each in total) / max(1, len(total))
