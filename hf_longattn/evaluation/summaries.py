"""Means and ratios with their standard errors, and scores by the length of a document."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

BUCKETS = (512, 1024, 2048, 4096, 8192)
"""Upper bounds of the length buckets, in tokens of the document."""
LEAST_ITEMS = 10
"""Minimum number of items for a standard error. Fewer items say too little about their spread."""
Row = TypeVar("Row")
Estimate = tuple[float, float | None]
"""A value and its standard error, ``None`` for fewer than :data:`LEAST_ITEMS` items."""


def standard_error(variance: float, items: int) -> float | None:
    """The standard error of an estimate from ``items`` items; ``None`` for fewer than :data:`LEAST_ITEMS`.

    Args:
        variance: variance of the estimate.
    """
    return math.sqrt(variance) if items >= LEAST_ITEMS else None


def mean_and_error(values: Sequence[float]) -> Estimate:
    return ratio_and_error([(value, 1) for value in values])


def ratio_and_error(pairs: Sequence[tuple[float, int]]) -> Estimate:
    """Sum of the first numbers / sum of the second numbers, with its standard error (Cochran 1977, §2.11)."""
    count, total = len(pairs), max(1, sum(size for _, size in pairs))
    ratio = sum(part for part, _ in pairs) / total
    spread = sum((part - ratio * size) ** 2 for part, size in pairs)
    return ratio, standard_error(spread * count / max(1, count - 1) / total**2, count)


def plus_minus(value: float, error: float | None, digits: int) -> str:
    """A value with its error as text: "2.935 ± 0.041", or "2.935" without an error."""
    if error is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def in_percent(estimates: Mapping[str, Estimate], items: int) -> dict[str, float]:
    """Each estimate in per cent, its standard error as ``NAME_se`` if known, and ``n`` items."""
    scores: dict[str, float] = {}
    for name, (value, error) in estimates.items():
        scores[name] = 100 * value
        if error is not None:
            scores[f"{name}_se"] = 100 * error
    return {**scores, "n": items}


def means_in_percent(names: Sequence[str], rows: Sequence[Sequence[float]]) -> dict[str, float]:
    """The mean of each column of ``rows``, as :func:`in_percent` returns it."""
    return in_percent(
        {name: mean_and_error([row[column] for row in rows]) for column, name in enumerate(names)}, len(rows)
    )


def by_bucket(
    rows: Sequence[Row], lengths: Sequence[int], summarise: Callable[[list[Row]], dict[str, float]]
) -> dict[str, Any]:
    """``{"<=512": summarise(rows of 0 to 512 tokens), …, ">8192": …}`` without empty buckets.

    lengths: length of each row's document. Rows with a negative length are left out.
    """
    names = [f"<={high}" for high in BUCKETS] + [f">{BUCKETS[-1]}"]
    scores = {}
    for name, low, high in zip(names, (-1, *BUCKETS), (*BUCKETS, math.inf), strict=True):
        inside = [row for row, length in zip(rows, lengths, strict=True) if low < length <= high]
        if inside:
            scores[name] = summarise(inside)
    return scores
