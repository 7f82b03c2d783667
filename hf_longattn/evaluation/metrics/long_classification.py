"""Accuracy and macro F1 of single-label classification, over all documents and by the length of the document.

Macro F1 is the mean of F1 over the classes that occur among labels or predictions. The F1 of a class that is never
predicted correctly is 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..summaries import by_bucket, in_percent, mean_and_error, standard_error

EXAMPLE = ([1], [{"label": 1, "length": 9}], "accuracy")
"""Identical predictions and references, and the name of the score that must then be 100. Used by tests."""


def compute(predictions: list[int], references: list[dict[str, int]]) -> dict[str, Any]:
    """Scores of predicted classes.

    Args:
        predictions: the number of a class for each document.
        references: for each document, ``label``, the number of its class, and ``length``, its number of tokens (-1 if
            it is unknown).

    Returns:
        accuracy and macro_f1 in per cent, their standard errors (accuracy_se, macro_f1_se) for ten documents or more,
        n, the number of documents, and buckets, {"<=512": scores of the documents of this length, ...}.
    """
    pairs: Any = [
        (reference["label"], prediction) for reference, prediction in zip(references, predictions, strict=True)
    ]
    lengths = [reference["length"] for reference in references]
    return {**summarise(pairs), "buckets": by_bucket(pairs, lengths, summarise)}


def summarise(pairs: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Accuracy and macro F1 of (label, prediction) pairs in per cent, with standard errors, and ``n`` pairs.

    The standard error of macro F1 is found by the jackknife: the F1 is computed without each of the pairs in turn.
    """
    accuracy = mean_and_error([label == prediction for label, prediction in pairs])
    counts, n = Counter(pairs), max(1, len(pairs))
    f1_without = {pair: _macro_f1(counts - Counter([pair])) for pair in counts}
    mean = sum(count * f1_without[pair] for pair, count in counts.items()) / n
    variance = (n - 1) / n * sum(count * (f1_without[pair] - mean) ** 2 for pair, count in counts.items())
    macro_f1 = _macro_f1(counts), standard_error(variance, len(pairs))
    return in_percent({"accuracy": accuracy, "macro_f1": macro_f1}, len(pairs))


def _macro_f1(counts: Counter[tuple[int, int]]) -> float:
    """Mean F1 over the classes, from counts of (label, prediction) pairs."""
    right: Counter[int] = Counter()
    total: Counter[int] = Counter()  # labels and predictions of a class
    for (label, prediction), count in counts.items():
        total[label] += count
        total[prediction] += count
        if label == prediction:
            right[label] += count
    return sum(2 * right[number] / total[number] for number in total) / max(1, len(total))
