"""Means and ratios with their standard errors, and scores by the length of a document."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

BUCKETS = (512, 1024, 2048, 4096, 8192)
"""Upper bounds of the buckets into which documents are sorted by length, in tokens."""
LEAST_ITEMS = 10
"""Minimum number of items for a standard error. Fewer items say too little about their spread."""
Row = TypeVar("Row")
Estimate = tuple[float, float | None]
"""A value and its standard error, which is ``None`` for fewer than :data:`LEAST_ITEMS` items."""


def standard_error(variance: float, items: int) -> float | None:
    """The standard error of an estimate with this ``variance``; ``None`` for fewer than :data:`LEAST_ITEMS` items."""
    return math.sqrt(variance) if items >= LEAST_ITEMS else None


def mean_and_error(values: Sequence[float]) -> Estimate:
    """The mean of ``values`` and its standard error."""
    return ratio_and_error([(value, 1) for value in values])


def ratio_and_error(pairs: Sequence[tuple[float, int]]) -> Estimate:
    """The sum of the first numbers over the sum of the second ones, and its standard error (Cochran 1977, §2.11)."""
    count, total = len(pairs), max(1, sum(size for _, size in pairs))
    ratio = sum(part for part, _ in pairs) / total
    squares = sum((part - ratio * size) ** 2 for part, size in pairs)
    variance = squares * count / max(1, count - 1) / total**2
    return ratio, standard_error(variance, count)


def plus_minus(value: float, error: float | None, digits: int) -> str:
    """A value with its error as text, such as "2.935 ± 0.041", or "2.935" if there is no error."""
    if error is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def in_percent(estimates: Mapping[str, Estimate], items: int) -> dict[str, float]:
    """Each estimate in per cent, its standard error as ``NAME_se`` if it has one, and ``items`` as ``n``."""
    scores: dict[str, float] = {}
    for name, (value, error) in estimates.items():
        scores[name] = 100 * value
        if error is not None:
            scores[f"{name}_se"] = 100 * error
    return {**scores, "n": items}


def means_in_percent(names: Sequence[str], rows: Sequence[Sequence[float]]) -> dict[str, float]:
    """The mean of each column of ``rows`` in per cent, with errors and ``n``. ``names``: names of the columns."""
    means = {name: mean_and_error([row[column] for row in rows]) for column, name in enumerate(names)}
    return in_percent(means, len(rows))


def by_bucket(
    rows: Sequence[Row], lengths: Sequence[int], summarise: Callable[[list[Row]], dict[str, float]]
) -> dict[str, Any]:
    """``{"<=512": summarise(rows of 0 to 512 tokens), …, ">8192": …}`` without empty buckets.

    ``lengths`` are the tokens of each row's document. Rows with a negative length are left out.
    """
    names = [f"<={high}" for high in BUCKETS] + [f">{BUCKETS[-1]}"]
    scores = {}
    for name, low, high in zip(names, (-1, *BUCKETS), (*BUCKETS, math.inf), strict=True):
        inside = [row for row, length in zip(rows, lengths, strict=True) if low < length <= high]
        if inside:
            scores[name] = summarise(inside)
    return scores
