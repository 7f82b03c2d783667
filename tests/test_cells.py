"""Tables of cells in one test: each cell runs, those that fail are all named, and slow ones are a test of their own."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from tests import cells
from tests.cells import Cells, every_cell

SLOW = pytest.param(5, marks=pytest.mark.slow)


def groups(test: Any) -> dict[str, bool]:
    """The tests of a table by name, and whether each is slow."""
    (mark,) = (mark for mark in test.pytestmark if mark.args[0] == "_group")
    return {value.values[0]: bool(value.marks) for value in mark.args[1]}


def test_all_cells_run_and_all_that_fail_are_named() -> None:
    @every_cell("x", [1, 2, 3, 4])
    def even(x: int) -> None:
        if x == 4:
            pytest.skip("four")
        if x == 3:
            pytest.fail("three is odd")
        assert x % 2 == 0, f"{x} is odd"

    with pytest.raises(AssertionError) as caught:
        even()
    assert str(caught.value).startswith("2 of 3 cells failed: 1, 3\n\n[1] at test_cells.py:")
    assert all(words in str(caught.value) for words in ("1 is odd", "Failed: three is odd"))


def test_cells_that_are_all_skipped_skip_the_test() -> None:
    with pytest.raises(pytest.skip.Exception, match="not here"), Cells() as table, table("one"):
        pytest.skip("not here")


def test_a_table_without_cells_fails() -> None:
    with pytest.raises(AssertionError, match="no cell ran"), Cells():
        pass


def test_each_cell_has_the_seed_and_a_monkeypatch_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, patched = [], []

    @every_cell("x", range(3))
    def draws(x: int, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn.append(torch.rand(()).item())
        patched.append(hasattr(cells, "patched"))
        monkeypatch.setattr(cells, "patched", x, raising=False)

    draws(monkeypatch=monkeypatch)
    assert len(drawn) == 3
    assert len({*drawn}) == 1
    assert not any(patched)
    assert not hasattr(cells, "patched")


def test_decorators_are_multiplied_and_the_slow_cells_are_a_slow_test() -> None:
    seen = []

    @pytest.mark.filterwarnings("ignore")
    @every_cell("y", ["a", SLOW])
    @every_cell(("x", "z"), [(1, 2), (3, 4)], by="x")
    def table(x: int, y: Any, z: int, recwarn: object) -> None:
        seen.append((x, y, z))

    assert groups(table) == {"1": False, "1-slow": True, "3": False, "3-slow": True}
    assert [*inspect.signature(table).parameters] == ["recwarn", "_group"]
    for group in groups(table):
        table(recwarn=None, _group=group)
    assert seen == [(1, "a", 2), (1, 5, 2), (3, "a", 4), (3, 5, 4)]


def test_of_pairs_the_quick_test_has_every_two_values() -> None:
    seen: list[tuple[int, ...]] = []

    @every_cell("x", range(3), pairs=True)
    @every_cell("y", range(3))
    @every_cell("z", range(3))
    def table(x: int, y: int, z: int) -> None:
        seen.append((x, y, z))

    table(_group="quick")
    assert len(seen) < 15
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert {(cell[a], cell[b]) for cell in seen} == {(i, j) for i in range(3) for j in range(3)}
    table(_group="slow")
    assert len({*seen}) == len(seen) == 27


def test_only_the_cells_asked_for_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cells, "ONLY", ["window"])

    @every_cell("name", ["window", "linear", "window2d"])
    def table(name: str) -> None:
        assert "window" in name

    table()
    assert capsys.readouterr().out.split() == ["window", "window2d"]


def test_every_test_of_a_class_has_the_cells() -> None:
    @every_cell("x", [1, 2])
    class Tests:
        def test_small(self, x: int) -> None:
            assert x < 2

    with pytest.raises(AssertionError, match="1 of 2 cells failed: 2"):
        Tests().test_small()


def quick_cells(test: Any) -> list[dict[str, Any]]:
    return [arguments for _, arguments, slow in test.every_cell.cells if not slow]


def test_a_part_of_the_values_is_quick_and_begins_elsewhere_in_each_test() -> None:
    parts = set()
    for name in "abcdefgh":

        def test(x: int) -> None:
            pass

        test.__qualname__ = name
        table = every_cell("x", range(9), of=3)(test)
        assert len(table.every_cell.cells) == 9, "the others are slow"
        parts.add(tuple(cell["x"] for cell in quick_cells(table)))
    assert parts == {(0, 3, 6), (1, 4, 7), (2, 5, 8)}


def test_every_code_has_a_quick_value() -> None:
    @every_cell(("name", "size"), [("a", 1), ("a", 2), ("b", 1), ("c", 1), ("c", 2), pytest.param("d", 1, marks=pytest.mark.slow)], of=2,
                alike=lambda name, size: name)  # fmt: skip
    def test(name: str, size: int) -> None:
        pass

    assert [cell["name"] for cell in quick_cells(test)] == ["a", "b", "c"]


def test_a_second_axis_is_in_turn_too() -> None:
    @every_cell(("row", "way"), [(row, way) for row in range(4) for way in "xy"], of=2, alike=lambda row, way: way)
    def test(row: int, way: str) -> None:
        pass

    assert sorted(cell["row"] for cell in quick_cells(test)) == [0, 1, 2, 3]
