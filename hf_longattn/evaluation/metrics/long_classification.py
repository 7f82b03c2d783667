"""Accuracy and macro F1 of document classification, overall and by document length, with counts and standard errors."""

from __future__ import annotations

import math
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
Returns a dict: accuracy, accuracy_se, macro_f1, n, and buckets: {"<=512": the same four, ...} without empty ones.
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
    """Return accuracy with its standard error and macro F1 of (label, prediction) pairs, in per cent, and their number."""
    count = len(pairs)
    share = sum(label == found for label, found in pairs) / count if count else 0.0
    error = math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else 0.0
    scores = [_f1(pairs, each) for each in sorted({number for pair in pairs for number in pair})]
    macro = sum(scores) / len(scores) if scores else 0.0
    return {"accuracy": 100 * share, "accuracy_se": 100 * error, "macro_f1": 100 * macro, "n": count}


def _f1(pairs: Sequence[tuple[int, int]], each: int) -> float:
    right = sum(label == found == each for label, found in pairs)
    return 2 * right / sum((label == each) + (found == each) for label, found in pairs)
