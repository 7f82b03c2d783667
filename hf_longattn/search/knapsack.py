"""The best choice of one candidate per layer under every budget at once: a multiple-choice knapsack, solved by dynamic programming.

    maximise  Σ_l value[l, c_l]   subject to   Σ_l cost[l, c_l] ≤ budget

Layer by layer, the partial choices are kept that no other beats in value at the same cost or less; costs are not rounded. If more than
20,000 remain, the best one in each 20,000th of the largest budget is kept, so that a choice is always within its budget, and no other
choice that is cheaper by such a part per layer is better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_PARTIAL = 20_000
"""Partial choices kept, at most."""
TOLERANCE = 1e-9
"""Relative difference of costs that counts as none, and of values."""
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Solution:
    """One candidate for each layer.

    candidates: their numbers, by layer.
    value, cost: the sums over layers.
    """

    candidates: tuple[int, ...]
    value: float
    cost: float


def front(values: Numbers, costs: Numbers, largest: float | None = None) -> list[Solution]:
    """The best choice for every budget up to ``largest``, cheapest first: no other has more value at the same cost or less.

    Args:
        values: ``(layers, candidates)``; nan or -inf where a candidate is impossible.
        costs: ``(layers, candidates)`` of at least 0; inf where impossible.
        largest: budget; the cost of the most expensive choice if not given.
    Returns:
        Choices in ascending order of cost and value; empty if even the cheapest exceeds ``largest``.
    """
    possible = np.isfinite(values) & np.isfinite(costs)
    if largest is None:
        largest = float(np.where(possible, costs, 0.0).max(1).sum())
    limit = largest * (1 + TOLERANCE)
    cost, value = np.zeros(1), np.zeros(1)
    steps: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for layer in range(len(values)):
        numbers = np.flatnonzero(possible[layer])
        total, worth = (cost[:, None] + costs[layer, numbers]).ravel(), (value[:, None] + values[layer, numbers]).ravel()
        order = np.lexsort((-worth, total))
        order = order[total[order] <= limit]
        if not len(order):
            return []
        highest = np.maximum.accumulate(worth[order])
        order = order[np.concatenate([[True], highest[1:] > highest[:-1] + TOLERANCE])]
        if len(order) > MAX_PARTIAL:
            cell = np.floor(total[order] / limit * MAX_PARTIAL)
            order = order[np.concatenate([cell[1:] > cell[:-1], [True]])]  # values rise, so the last of a cell is its best
        steps.append((order // len(numbers), numbers[order % len(numbers)]))
        cost, value = total[order], worth[order]
    solutions = []
    for last in range(len(cost)):
        at, candidates = last, []
        for parents, chosen in reversed(steps):
            candidates.append(int(chosen[at]))
            at = int(parents[at])
        solutions.append(Solution(tuple(reversed(candidates)), float(value[last]), float(cost[last])))
    return solutions


def best_under_peak(values: Numbers, costs: Numbers, peaks: Numbers, limit: float) -> Solution | None:
    """The choice with the greatest value where no layer alone exceeds ``limit``. This suits memory that one layer frees before the next.
    Of equal values, the cheaper. ``None`` if some layer has no candidate."""
    allowed = np.isfinite(values) & (peaks <= limit)
    if not allowed.any(1).all():
        return None
    numbers = np.lexsort((costs, -np.where(allowed, values, -np.inf)))[:, 0].tolist()
    layers = range(len(numbers))
    return Solution(tuple(numbers), float(values[layers, numbers].sum()), float(costs[layers, numbers].sum()))


def thinned(solutions: list[Solution], count: int) -> list[Solution]:
    """At most ``count`` of a front, the first and the last among them, evenly spaced in value."""
    if len(solutions) <= count:
        return solutions
    values = np.array([solution.value for solution in solutions])
    numbers = {int(abs(values - mark).argmin()) for mark in np.linspace(values[0], values[-1], count)}
    return [solutions[number] for number in sorted(numbers)]
