"""Means and ratios with their standard errors, and scores by the length of a document."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

BUCKETS = (512, 1024, 2048, 4096, 8192)
"""Upper bounds of the length buckets, in tokens of the document."""
Row = TypeVar("Row")


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error; the error is 0 of fewer than two values, which do not have one."""
    count = len(values)
    mean = sum(values) / count if count else 0.0
    spread = sum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(spread / (count - 1) / count) if count > 1 else 0.0


def means_in_percent(names: Sequence[str], rows: Sequence[Sequence[float]]) -> dict[str, float]:
    """The mean of each column of ``rows`` in per cent, with its standard error as ``NAME_se``, and the number of rows, ``n``."""
    scores: dict[str, float] = {}
    for column, name in enumerate(names):
        mean, error = mean_and_error([row[column] for row in rows])
        scores |= {name: 100 * mean, f"{name}_se": 100 * error}
    return {**scores, "n": len(rows)}


def ratio_and_error(pairs: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """The sum of the first numbers over that of the second, and its standard error over pairs (Cochran 1977, section 2.11); the error is 0
    of fewer than two pairs."""
    count, total = len(pairs), max(1, sum(size for _, size in pairs))
    ratio = sum(part for part, _ in pairs) / total
    spread = sum((part - ratio * size) ** 2 for part, size in pairs)
    return ratio, math.sqrt(spread * count / (count - 1)) / total if count > 1 else 0.0


def by_bucket(
    rows: Sequence[Row], lengths: Sequence[int], summarise: Callable[[list[Row]], dict[str, float]], buckets: Sequence[int] = BUCKETS
) -> dict[str, Any]:
    """``{"<=512": summarise(rows of 0 to 512 tokens), …, ">8192": …}`` without empty buckets.

    Args:
        lengths: of each row's document; rows with a negative length are in no bucket.
        buckets: ascending upper bounds.
    """
    names = [f"<={high}" for high in buckets] + [f">{buckets[-1]}"]
    scores = {}
    for name, low, high in zip(names, (-1, *buckets), (*buckets, math.inf), strict=True):
        inside = [row for row, length in zip(rows, lengths, strict=True) if low < length <= high]
        if inside:
            scores[name] = summarise(inside)
    return scores
