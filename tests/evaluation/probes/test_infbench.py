"""∞Bench's calculations: every answer is computed again from the text alone."""

from __future__ import annotations

import re
from collections import Counter
from statistics import median

import pytest

from .test_ruler import sample, words


def test_one_number_of_a_list() -> None:
    asked: Counter[str] = Counter()
    for seed in range(120):
        made = sample("infbench_math_find", 400, seed)
        numbers = [int(one) for one in re.findall(r"\d+", made.context)]
        assert made.context == str(numbers)
        assert 0 <= min(numbers) <= max(numbers) <= 99
        found = re.fullmatch(r"What is the (.+) number in the following list\?\n\n", made.before)
        assert found is not None
        name, distinct = found.group(1), sorted(set(numbers))
        right = {
            "smallest": distinct[0], "second smallest": distinct[1], "third smallest": distinct[2],
            "largest": distinct[-1], "second largest": distinct[-2], "third largest": distinct[-3], "median": median(numbers),
        }[name]  # fmt: skip
        assert made.answers == (str(right),), name
        assert made.question.endswith(f" The {name} number of the list is:")
        assert set(made.distractors) <= {str(one) for one in distinct} - {str(right)}
        assert min(numbers) < 20 or max(numbers) == 99 or "smallest" not in name
        assert max(numbers) > 75
        asked[name] += 1
    assert len(asked) == 7
    assert min(asked.values()) > 5
    assert (made.new_tokens, made.score) == (3, "first_value")


@pytest.mark.thorough
def test_the_greatest_and_the_smallest_number_are_drawn_too() -> None:
    tops, bottoms = set(), set()
    for seed in range(200):
        made = sample("infbench_math_find", 1500, seed)
        numbers = [int(one) for one in re.findall(r"\d+", made.context)]
        if "What is the largest" in made.before:
            tops.add(made.answers[0])
            assert min(numbers) <= 3
        if "What is the smallest" in made.before:
            bottoms.add(made.answers[0])
            assert max(numbers) >= 96
    assert len(tops) > 5
    assert len(bottoms) > 5


@pytest.mark.parametrize("length", [200, 1500])
def test_all_intermediate_values(length: int) -> None:
    for seed in range(20):
        made = sample("infbench_math_calc", length, seed)
        first, *steps = re.findall(r"(?:[+-] )?\d+", made.context)
        assert made.context == " ".join([first, *steps])
        values = [int(first)]
        for step in steps:
            values.append(values[-1] + int(step.replace(" ", "")))
        assert made.answers == (str(values),)
        assert 0 <= min(values) <= max(values) <= 99
        assert made.new_tokens == words(f" {values}")
        assert words(made.prompt) + made.new_tokens <= length
        assert made.prompt.endswith(f"Expression: {made.context}\nValues:")
        assert {"+", "-"} == set(re.findall(r"[+-]", made.context))


def test_what_a_call_returns_by_running_the_code() -> None:
    depths = set()
    for seed in range(60):
        made = sample("infbench_code_run", 2500, seed)
        space: dict[str, object] = {}
        exec(made.context, space)
        found = re.fullmatch(r"\n\n\nPlease compute the exact value of (func_\d+)\((-?\d+)\)\.", made.question)
        assert found is not None
        name, x = found.groups()
        assert made.prefix == f" The value of {name}({x}) is"
        assert f"called {name} in" in made.before
        assert made.answers == (str(space[name](int(x))),)  # type: ignore[operator]
        assert made.answers[0] not in made.distractors
        bodies = dict(re.findall(r"def (func_\d+)\(x\):\n    return (.+)\n", made.context))
        assert len(bodies) == made.context.count("def ")
        assert list(bodies) == sorted(bodies, key=lambda one: int(one.removeprefix("func_")))
        assert all(re.fullmatch(r"(func_\d+\(x\)|x)( [+-] [1-9]\d*)?", body) for body in bodies.values())
        assert all(-12 <= int(step.replace(" ", "")) <= 17 for body in bodies.values() for step in re.findall(r"[+-] \d+", body))
        depth, at = 1, bodies[name]
        while at.startswith("func"):
            depth, at = depth + 1, bodies[at.partition("(")[0]]
        depths.add(depth)
    assert depths == {2, 4, 6, 8, 10}
    assert (made.new_tokens, made.score) == (5, "last_word")
