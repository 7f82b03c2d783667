"""Tables of cases in one test: each case runs, those that fail are all named, and slow ones are a test of their own."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from tests import cases
from tests.cases import Cases, every_case

SLOW = pytest.param(5, marks=pytest.mark.slow)


def groups(test: Any) -> dict[str, bool]:
    """The tests of a table by name, and whether each is slow."""
    (mark,) = (mark for mark in test.pytestmark if mark.args[0] == "_group")
    return {value.values[0]: bool(value.marks) for value in mark.args[1]}


def test_every_case_runs_all_cases_and_names_all_that_fail() -> None:
    @every_case("x", [1, 2, 3, 4])
    def even(x: int) -> None:
        if x == 4:
            pytest.skip("four")
        if x == 3:
            pytest.fail("three is odd")
        assert x % 2 == 0, f"{x} is odd"

    with pytest.raises(AssertionError) as caught:
        even()
    assert str(caught.value).startswith("2 of 3 cases failed: 1, 3\n\n[1] at test_cases.py:")
    assert all(words in str(caught.value) for words in ("1 is odd", "Failed: three is odd"))


def test_every_case_fails_without_cases() -> None:
    with pytest.raises(AssertionError, match="no case ran"), Cases():
        pass


def test_every_case_has_the_seed_and_a_monkeypatch_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, patched = [], []

    @every_case("x", range(3))
    def draws(x: int, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn.append(torch.rand(()).item())
        patched.append(hasattr(cases, "patched"))
        monkeypatch.setattr(cases, "patched", x, raising=False)

    draws(monkeypatch=monkeypatch)
    assert len(drawn) == 3
    assert len({*drawn}) == 1
    assert not any(patched)
    assert not hasattr(cases, "patched")


def test_every_case_multiplies_decorators_and_has_slow_cases_in_a_slow_test() -> None:
    seen = []

    @pytest.mark.filterwarnings("ignore")
    @every_case("y", ["a", SLOW])
    @every_case(("x", "z"), [(1, 2), (3, 4)], by="x")
    def table(x: int, y: Any, z: int, recwarn: object) -> None:
        seen.append((x, y, z))

    assert groups(table) == {"1": False, "1-slow": True, "3": False, "3-slow": True}
    assert [*inspect.signature(table).parameters] == ["recwarn", "_group"]
    for group in groups(table):
        table(recwarn=None, _group=group)
    assert seen == [(1, "a", 2), (1, 5, 2), (3, "a", 4), (3, 5, 4)]


def test_every_case_with_pairs_has_every_two_values_in_the_quick_test() -> None:
    seen: list[tuple[int, ...]] = []

    @every_case("x", range(3), pairs=True)
    @every_case("y", range(3))
    @every_case("z", range(3))
    def table(x: int, y: int, z: int) -> None:
        seen.append((x, y, z))

    table(_group="quick")
    assert len(seen) < 15
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert {(case[a], case[b]) for case in seen} == {(i, j) for i in range(3) for j in range(3)}
    table(_group="slow")
    assert len({*seen}) == len(seen) == 27


def quick_cases(test: Any) -> list[dict[str, Any]]:
    return [arguments for _, arguments, slow in test.every_case.cases if not slow]


def test_every_case_with_code_has_a_quick_value_for_every_code() -> None:
    @every_case(("name", "size"), [("a", 1), ("a", 2), ("b", 1), ("c", 1), ("c", 2), pytest.param("d", 1, marks=pytest.mark.slow)], of=2,
                code=lambda name, size: name)  # fmt: skip
    def test(name: str, size: int) -> None:
        pass

    assert [case["name"] for case in quick_cases(test)] == ["a", "b", "c"]
