"""The choice of one candidate per layer against all choices, one by one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from hf_longattn.search.knapsack import Choice, best_under_peak, front, thinned


def all_choices(values: np.ndarray, costs: np.ndarray) -> list[tuple[float, float, tuple[int, ...]]]:
    """(value, cost, candidates) of every possible design."""
    layers = range(len(values))
    return [
        (float(sum(values[layer, one] for layer, one in zip(layers, numbers, strict=True))),
         float(sum(costs[layer, one] for layer, one in zip(layers, numbers, strict=True))), numbers)
        for numbers in itertools.product(range(values.shape[1]), repeat=len(values))
    ]  # fmt: skip


def best_within(values: np.ndarray, costs: np.ndarray, budget: float) -> Choice | None:
    """The last choice of the front, which has the greatest value within the budget."""
    return next(reversed(front(values, costs, budget)), None)


@pytest.mark.parametrize("seed", range(8))
def test_the_best_choice_is_found_under_every_budget(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, costs = rng.random((4, 5)), rng.integers(1, 60, (4, 5)).astype(float)
    everything = all_choices(values, costs)
    for budget in (costs.min(1).sum(), 50.0, 100.0, 150.0, 240.0):
        possible = [one for one in everything if one[1] <= budget]
        found = best_within(values, costs, budget)
        if not possible:
            assert found is None
            continue
        assert found is not None
        assert found.cost <= budget
        assert math.isclose(found.value, max(possible)[0], rel_tol=1e-9)
        assert any(one[2] == found.candidates and math.isclose(one[1], found.cost) for one in possible)


def test_a_design_that_costs_exactly_the_budget_is_within_it() -> None:
    values, costs = np.array([[0.1, 0.9]] * 6), np.array([[0.01, 0.0371]] * 6)
    found = best_within(values, costs, 6 * 0.0371)
    assert found is not None
    assert found.candidates == (1,) * 6


def test_the_front_rises_in_cost_and_value() -> None:
    rng = np.random.default_rng(0)
    found = front(rng.random((6, 7)), rng.random((6, 7)))
    assert len(found) > 5
    assert all(a.value < b.value and a.cost < b.cost + 6e-3 for a, b in itertools.pairwise(found))
    few = thinned(found, 4)
    assert len(few) == 4
    assert (few[0], few[-1]) == (found[0], found[-1])


def test_what_is_not_applicable_is_never_chosen() -> None:
    values, costs = np.array([[0.5, np.nan, 0.9]] * 3), np.array([[1.0, 0.1, np.inf]] * 3)
    assert [one.candidates for one in front(values, costs)] == [(0, 0, 0)]
    assert best_within(values, costs, 2.0) is None


def test_memory_that_one_layer_frees_before_the_next_limits_each_layer_alone() -> None:
    values, costs, peaks = np.array([[0.2, 0.7, 0.7, 0.9]] * 2), np.array([[1.0, 5.0, 3.0, 9.0]] * 2), np.array([[1.0, 4.0, 4.0, 8.0]] * 2)
    found = best_under_peak(values, costs, peaks, 4.0)
    assert found is not None
    assert found.candidates == (2, 2)
    assert best_under_peak(values, costs, peaks, 0.5) is None
