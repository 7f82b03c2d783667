"""What the quick tests run: of a grid every pair of values once, of drawn examples a half; the product of all axes and
all examples are for `make test-slow`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import settings

ONLY_QUICK = False
"""Whether slow tests are left out of this run; :func:`tests.conftest.pytest_configure` says it."""


def all_pairs(*sizes: int) -> list[tuple[int, ...]]:
    """Cases of a grid with axes of these sizes, as indices, in which every two values of two axes meet; the same at
    every call.

    Greedy: each cell takes an uncovered pair with the most new pairs around it, values that were used least first.
    """
    axes = [*itertools.combinations(range(len(sizes)), 2)]
    uncovered = {(a, b, i, j): None for a, b in axes for i in range(sizes[a]) for j in range(sizes[b])}
    used = [[0] * size for size in sizes]
    cells = []
    while uncovered:
        first, second, i, j = next(iter(uncovered))
        cell: list[int | None] = [None] * len(sizes)
        cell[first], cell[second] = i, j
        for axis in range(len(sizes)):
            if cell[axis] is None:
                known = [(at, value) for at, value in enumerate(cell) if value is not None]
                cell[axis] = min(
                    range(sizes[axis]),
                    key=lambda value: (
                        -sum(_pair(axis, value, *other) in uncovered for other in known),
                        used[axis][value],
                        value,
                    ),
                )
        chosen = [value for value in cell if value is not None]
        cells.append(tuple(chosen))
        for axis, value in enumerate(chosen):
            used[axis][value] += 1
        for a, b in axes:
            uncovered.pop((a, b, chosen[a], chosen[b]), None)
    return cells


def _pair(axis: int, value: int, other_axis: int, other_value: int) -> tuple[int, int, int, int]:
    return (axis, other_axis, value, other_value) if axis < other_axis else (other_axis, axis, other_value, value)


def grid(cells: Iterable[Sequence[Any]], quick: Callable[..., bool]) -> list[Any]:
    """The parameters of every cell; those for which ``quick(*cell)`` does not hold are for `make test-slow`."""
    return [pytest.param(*cell, marks=() if quick(*cell) else pytest.mark.slow) for cell in cells]


def pairwise(*axes: Sequence[Any]) -> list[Any]:
    """The parameters of the product of the axes; those outside :func:`all_pairs` are for `make test-slow`."""
    pairs = {*all_pairs(*map(len, axes))}
    product = itertools.product(*map(range, map(len, axes)))
    return [
        pytest.param(*cell, marks=() if indices in pairs else pytest.mark.slow)
        for indices in product
        for cell in [[axis[index] for axis, index in zip(axes, indices, strict=True)]]
    ]


def alternately(values: Sequence[Any]) -> list[Any]:
    """The parameters of each value with ``False`` and with ``True``, of which in turn one is quick, beginning with
    ``False``."""
    return [
        pytest.param(value, second, marks=() if second == bool(number % 2) else pytest.mark.slow)
        for number, value in enumerate(values)
        for second in (False, True)
    ]


def quickly(values: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """The parameters of one axis; those that are not in ``quick`` are for `make test-slow`."""
    return [pytest.param(value, marks=() if value in quick else pytest.mark.slow) for value in values]


def every_other(values: Iterable[Any]) -> list[Any]:
    """The parameters of one axis, of which every other is quick: for families that another quick test runs, or that
    share their code."""
    return [
        pytest.param(value, marks=() if number % 2 == 0 else pytest.mark.slow) for number, value in enumerate(values)
    ]


def drawn(count: int) -> settings:
    """hypothesis' settings for ``count`` examples, always the same; the quick tests try the first half."""
    return settings(max_examples=(count + 1) // 2 if ONLY_QUICK else count, deadline=None, derandomize=True)
