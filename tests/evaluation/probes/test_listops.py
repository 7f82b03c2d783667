"""ListOps: expressions have the value they say, and the lengths that were asked for."""

from __future__ import annotations

import random
from statistics import median

import pytest

from hf_longattn.errors import OptionError
from hf_longattn.evaluation.probes import ListOps
from hf_longattn.evaluation.probes.listops import END, OPERATORS


def value_of(symbols: list[str]) -> int:
    """The value by a stack, independent of how it was made."""
    stack: list[list[object]] = [[]]
    for one in symbols:
        if one.startswith("["):
            stack.append([one])
        elif one == "]":
            operator, *digits = stack.pop()
            numbers = [int(str(digit)) for digit in digits]
            assert 2 <= len(numbers) <= 10
            if operator == "[MED":
                result = int(median(numbers))
            else:
                result = {"[MIN": min, "[MAX": max, "[SM": lambda some: sum(some) % 10}[str(operator)](numbers)
            stack[-1].append(result)
        else:
            stack[-1].append(one)
    ((value,),) = stack
    return int(str(value))


def test_the_example_of_the_paper() -> None:
    assert value_of(["[MAX", "4", "3", "[MIN", "2", "3", "]", "1", "0", "[MED", "1", "5", "8", "9", "2", "]", "]"]) == 5


def test_operators() -> None:
    assert OPERATORS["[MED"]([1, 2, 4, 9]) == 3
    assert OPERATORS["[MED"]([1, 2, 3, 9]) == 2, "LRA cuts the median of an even number of values off"
    assert OPERATORS["[SM"]([9, 8, 5]) == 2


def test_expressions_have_their_values_and_bounds() -> None:
    task, rng, seen = ListOps(length=120), random.Random(0), set()
    for _ in range(60):
        symbols, value = task.draw(rng)
        assert value_of(symbols) == value
        assert 30 < len(symbols) < 120
        depth = most = 0
        for one in symbols:
            depth += (one.startswith("[")) - (one == "]")
            most = max(most, depth)
        assert depth == 0
        assert 1 <= most < 10
        seen |= set(symbols)
    assert seen == {*map(str, range(10)), *OPERATORS, END}


@pytest.mark.parametrize("wrong", [{"length": 4}, {"max_depth": 1}, {"max_arguments": 1}, {"length": 50, "least": 49}])
def test_impossible_bounds_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(OptionError, match="No expression"):
        ListOps(**wrong)


def test_bounds_that_no_draw_meets_are_refused() -> None:
    with pytest.raises(OptionError, match="was found in"):
        ListOps(length=400, least=300, max_depth=2).draw(random.Random(0))
