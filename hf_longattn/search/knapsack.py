"""The best choice of one candidate per layer under every budget at once: a multiple-choice knapsack, solved by dynamic programming.

    maximise  Σ_l value[l, c_l]   subject to   Σ_l cost[l, c_l] ≤ budget

Layer by layer, the partial choices are kept than which no other has more value at the same cost or less; costs are not rounded. Should
more than 20,000 remain, the best one in each 20,000th of the largest budget is kept, so a choice is always within its budget, and no other
that is cheaper by such a part per layer is better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PARTIAL = 20_000
"""Partial choices kept, at most."""
EQUAL = 1e-9
"""Relative difference of costs that counts as none, and of values."""
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """One candidate for each layer.

    candidates: their numbers, by layer.
    value, cost: the sums over layers.
    """

    candidates: tuple[int, ...]
    value: float
    cost: float


def front(values: Numbers, costs: Numbers, largest: float | None = None) -> list[Choice]:
    """The best choice for every budget up to ``largest``: those than which no other has more value at
    the same cost or less, cheapest first.

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
    limit = largest * (1 + EQUAL)
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
        order = order[np.concatenate([[True], highest[1:] > highest[:-1] + EQUAL])]
        if len(order) > PARTIAL:
            cell = np.floor(total[order] / limit * PARTIAL)
            order = order[np.concatenate([cell[1:] > cell[:-1], [True]])]  # values rise, so the last of a cell is its best
        steps.append((order // len(numbers), numbers[order % len(numbers)]))
        cost, value = total[order], worth[order]
    choices = []
    for last in range(len(cost)):
        at, candidates = last, []
        for parents, chosen in reversed(steps):
            candidates.append(int(chosen[at]))
            at = int(parents[at])
        choices.append(Choice(tuple(reversed(candidates)), float(value[last]), float(cost[last])))
    return choices


def best_under_peak(values: Numbers, costs: Numbers, peaks: Numbers, limit: float) -> Choice | None:
    """The choice with the greatest value where no layer alone exceeds ``limit``, as for memory that one layer frees before the next; of
    equal values the cheaper. ``None`` if some layer has no candidate."""
    allowed = np.isfinite(values) & (peaks <= limit)
    if not allowed.any(1).all():
        return None
    kept = np.where(allowed, values, -np.inf)
    numbers = tuple(int(min(np.flatnonzero(row >= row.max() - 1e-12), key=lambda one: costs[layer, one])) for layer, row in enumerate(kept))
    value = float(sum(values[layer, one] for layer, one in enumerate(numbers)))
    return Choice(numbers, value, float(sum(costs[layer, one] for layer, one in enumerate(numbers))))


def thinned(choices: list[Choice], count: int) -> list[Choice]:
    """At most ``count`` of a front, the first and the last among them, evenly spaced in value."""
    if len(choices) <= count:
        return choices
    marks = np.linspace(choices[0].value, choices[-1].value, count)
    numbers = {min(range(len(choices)), key=lambda one: abs(choices[one].value - mark)) for mark in marks}
    return [choices[one] for one in sorted(numbers)]
