"""The choice of one candidate per layer against all choices, one by one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from hf_longattn.search.choice import Solution, best_under_peak, front, thinned


def all_choices(values: np.ndarray, costs: np.ndarray) -> list[tuple[float, float, tuple[int, ...]]]:
    """(value, cost, candidates) of every possible design."""
    layers = range(len(values))
    return [
        (float(sum(values[layer, number] for layer, number in zip(layers, numbers, strict=True))),
         float(sum(costs[layer, number] for layer, number in zip(layers, numbers, strict=True))), numbers)
        for numbers in itertools.product(range(values.shape[1]), repeat=len(values))
    ]  # fmt: skip


def best_within(values: np.ndarray, costs: np.ndarray, budget: float) -> Solution | None:
    """The last choice of the front, which has the greatest value within the budget."""
    return next(reversed(front(values, costs, budget)), None)


@pytest.mark.parametrize("seed", range(8))
def test_the_best_choice_is_found_under_every_budget(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, costs = rng.random((4, 5)), rng.integers(1, 60, (4, 5)).astype(float)
    everything = all_choices(values, costs)
    for budget in (costs.min(1).sum(), 50.0, 100.0, 150.0, 240.0):
        possible = [choice for choice in everything if choice[1] <= budget]
        result = best_within(values, costs, budget)
        if not possible:
            assert result is None
            continue
        assert result is not None
        assert result.cost <= budget
        assert math.isclose(result.value, max(possible)[0], rel_tol=1e-9)
        assert any(choice[2] == result.candidates and math.isclose(choice[1], result.cost) for choice in possible)


def test_a_design_that_costs_exactly_the_budget_is_within_it() -> None:
    values, costs = np.array([[0.1, 0.9]] * 6), np.array([[0.01, 0.0371]] * 6)
    result = best_within(values, costs, 6 * 0.0371)
    assert result is not None
    assert result.candidates == (1,) * 6


def test_the_front_rises_in_cost_and_value() -> None:
    rng = np.random.default_rng(0)
    result = front(rng.random((6, 7)), rng.random((6, 7)))
    assert len(result) > 5
    assert all(a.value < b.value and a.cost < b.cost + 6e-3 for a, b in itertools.pairwise(result))
    few = thinned(result, 4)
    assert len(few) == 4
    assert (few[0], few[-1]) == (result[0], result[-1])


def test_candidates_that_are_not_applicable_are_never_chosen() -> None:
    values, costs = np.array([[0.5, np.nan, 0.9]] * 3), np.array([[1.0, 0.1, np.inf]] * 3)
    assert [solution.candidates for solution in front(values, costs)] == [(0, 0, 0)]
    assert best_within(values, costs, 2.0) is None


def test_memory_that_one_layer_frees_before_the_next_limits_each_layer_alone() -> None:
    values, costs, peaks = np.array([[0.2, 0.7, 0.7, 0.9]] * 2), np.array([[1.0, 5.0, 3.0, 9.0]] * 2), np.array([[1.0, 4.0, 4.0, 8.0]] * 2)
    result = best_under_peak(values, costs, peaks, 4.0)
    assert result is not None
    assert result.candidates == (2, 2)
    assert best_under_peak(values, costs, peaks, 0.5) is None
