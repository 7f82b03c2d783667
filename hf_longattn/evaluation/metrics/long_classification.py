"""Accuracy and macro F1 of single-label classification in per cent, over all documents and by their length in tokens.

Macro F1 is the mean over the classes that occur among labels or predictions. A class that is never predicted correctly
counts 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..summaries import by_bucket, in_percent, mean_and_error, standard_error

EXAMPLE = ([1], [{"label": 1, "length": 9}], "accuracy")
"""Identical predictions and references, and the name of the score that must then be 100. Used by tests."""


def compute(predictions: list[int], references: list[dict[str, int]]) -> dict[str, Any]:
    """Predictions are class numbers, references {label, length}. length: tokens of the document, -1 = unknown.

    Returns a dict: accuracy, macro_f1, their standard errors (accuracy_se, macro_f1_se) for ten documents or more, n,
    and buckets: {"<=512": the same, ...} without empty ones.
    """
    pairs: Any = [
        (reference["label"], prediction) for reference, prediction in zip(references, predictions, strict=True)
    ]
    lengths = [reference["length"] for reference in references]
    return {**summarise(pairs), "buckets": by_bucket(pairs, lengths, summarise)}


def summarise(pairs: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Accuracy and macro F1 of (label, prediction) pairs in per cent, with standard errors, and ``n`` pairs.

    The standard error of macro F1 is the jackknife's.
    """
    counts, n = Counter(pairs), max(1, len(pairs))
    without = {pair: _macro_f1(counts - Counter([pair])) for pair in counts}
    mean = sum(count * without[pair] for pair, count in counts.items()) / n
    variance = (n - 1) / n * sum(count * (without[pair] - mean) ** 2 for pair, count in counts.items())
    macro_f1 = _macro_f1(counts), standard_error(variance, len(pairs))
    return in_percent(
        {"accuracy": mean_and_error([label == prediction for label, prediction in pairs]), "macro_f1": macro_f1},
        len(pairs),
    )


def _macro_f1(counts: Counter[tuple[int, int]]) -> float:
    """Mean F1 over the classes, from counts of (label, prediction) pairs."""
    right: Counter[int] = Counter()
    total: Counter[int] = Counter()
    for (label, prediction), count in counts.items():
        total[label] += count
        total[prediction] += count
        right[label] += count * (label == prediction)
    return sum(2 * right[each] / total[each] for each in total) / max(1, len(total))
