"""What is drawn of a mechanism on a grid is what its definition says, worked out here by hand; the stored drawing has these panels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.dev.tools.grid_pictures import FILE, GRID, MEANS, NOTHING, PANELS, SEEN, Panel, draw, seen
from tests.cells import every_cell

BY_TITLE = {panel.title: panel for panel in PANELS}
ROWS, COLUMNS = GRID.sizes


def shifted(place: int) -> int:
    """The window of a place where windows of 4 are shifted by half of one."""
    return (place + 2) // 4


RULES: dict[str, Callable[[int, int], bool]] = {
    "window2d: window=4": lambda row, column: row // 4 == 1 and column // 4 == 1,
    "window2d: window=4, shift=alternate\n(layers 1, 3, 5 …)": lambda row, column: (shifted(row), shifted(column)) == (1, 2),
    "local2d: radius=2": lambda row, column: abs(row - 5) <= 2 and abs(column - 6) <= 2,
    "local2d: radius=2, at a border": lambda row, column: abs(row - 5) <= 2 and column <= 2,
    "neighborhood: kernel_size=5, at a border": lambda row, column: abs(row - 5) <= 2 and column <= 4,
    "neighborhood: kernel_size=5, dilation=2": lambda row, column: row in (1, 3, 5, 7, 9) and column in (2, 4, 6, 8, 10),
    "axial": lambda row, column: row == 5 or column == 6,
    "segmented: order=tiles:4x4": lambda row, column: row // 4 == 1 and column // 4 in (0, 1, 2),
    "window: window=24, order=raster": lambda row, column: abs((row - 5) * COLUMNS + column - 6) <= 12,
}


@every_cell("title", RULES)
def test_a_panel_shows_what_the_definition_says(title: str) -> None:
    kinds = seen(BY_TITLE[title])
    for row in range(ROWS):
        for column in range(COLUMNS):
            assert int(kinds[row, column]) == (SEEN if RULES[title](row, column) else NOTHING), (row, column)


def test_means_of_tiles_are_drawn_as_means() -> None:
    kinds = seen(BY_TITLE["segmented: order=tiles:4x4,\nintegration=pooled"])
    assert (kinds[4:8, 4:8] == SEEN).all()
    assert (kinds == SEEN).sum() == 16
    assert (kinds == MEANS).sum() == GRID.cells - 16


@pytest.mark.parametrize("order", ["hilbert", "tiles:4x4"])
def test_a_band_in_another_order_has_as_many_patches(order: str) -> None:
    assert (seen(BY_TITLE[f"window: window=24, order={order}"]) == SEEN).sum() == 25


def test_the_stored_drawing_has_every_panel_and_is_drawn_alike_each_time(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    stored = (repository / "docs" / "pictures" / FILE).read_text(encoding="utf-8")
    for line in (line for panel in PANELS for line in panel.title.split("\n")):
        assert line in stored, f"{line} is not drawn; type: make docs"
    for name in ("a.svg", "b.svg"):
        draw(tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert len(stored) < 150_000


def test_every_panel_has_a_rule_or_a_test_here() -> None:
    others = {panel.title for panel in PANELS if isinstance(panel, Panel)} - RULES.keys()
    assert len(others) == 3
