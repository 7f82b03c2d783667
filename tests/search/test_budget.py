"""Budgets as they are typed."""

from __future__ import annotations

import pytest

from hf_longattn.errors import OptionError
from hf_longattn.search.budget import Budget


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("0.25", 0.25, ""), ("25%", 0.25, ""), ("1.5s", 1.5, "s"), ("800 ms", 0.8, "s"), ("200MB", 2e8, "B"), ("2GiB", 2 * 2**30, "B"),
        (0.5, 0.5, ""),
    ],
)  # fmt: skip
def test_budgets_are_read(text: str | float, value: float, unit: str) -> None:
    result = Budget.read(text)
    assert result.value == pytest.approx(value)
    assert result.unit == unit
    assert result.of_memory == (unit == "B")
    assert Budget.read(result) is result


@pytest.mark.parametrize("text", ["", "0", "-1", "cheap", "3 layers", "1.5.2", "nan", "0.0s", "٣"])
def test_texts_that_are_no_budget_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="give a number above 0 such as"):
        Budget.read(text)


def test_a_budget_without_a_unit_is_relative_to_full_attention() -> None:
    assert Budget.read("0.25").limit(8.0) == 2.0
    assert Budget.read("1.5s").limit(8.0) == 1.5


@pytest.mark.parametrize("text", ["0.2", "1s", "1MB"])
@pytest.mark.parametrize("amount", [0.123456, 1.23456, 123_456.7, 12_345_678.9])
def test_a_budget_that_is_offered_is_enough_and_can_be_typed(text: str, amount: float) -> None:
    budget = Budget.read(text)
    offered = Budget.read(budget.like(amount, 2.0))
    assert offered.unit == budget.unit
    assert amount <= offered.limit(2.0) <= 1.02 * amount + 1e4
