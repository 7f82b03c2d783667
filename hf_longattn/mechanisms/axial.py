"""Axial attention (Ho et al. 2019, Axial Attention in Multidimensional Transformers; xformers' ``axial_2d_pattern``), on any grid.

A cell sees the cells on its line along an axis: those with equal coordinates on all other axes. With several axes, one softmax covers
the lines along all of them, and the cell itself counts once:

    y is seen from x  if  y_b = x_b on all axes b ≠ a  for an axis a of ``axes``
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..engines.common.call import AttentionCall, GatherTile
from ..engines.common.grid import Grid
from ..engines.common.paths import Kind, PathName
from ..engines.grid_lines import line_attention
from ..engines.grid_windows import window_attention
from ..errors import GridError, OptionError
from ..options import option
from .common.on_grid import GridMechanism, GridOptions, Places
from .common.registry import register_mechanism

ROWS, COLUMNS, BOTH = "rows", "columns", "both"
_NUMBERS = re.compile(r"[0-9]+(\+[0-9]+)*", re.ASCII)


@dataclasses.dataclass(frozen=True)
class AxialOptions(GridOptions):
    axes: str = option(
        BOTH,
        "along which axes a cell sees others: 'rows' (the last axis), 'columns' (the one before), 'both' (all), or numbers, as in 0+2",
    )

    def check(self) -> None:
        super().check()
        if self.axes not in (ROWS, COLUMNS, BOTH) and not _NUMBERS.fullmatch(self.axes):
            raise OptionError(
                f"Option 'axes' of mechanism 'axial' is {self.axes!r}, but must be rows, columns, both, or axis indices counted from 0; "
                "for example axes=0+2."
            )


@register_mechanism("axial")
class Axial(GridMechanism):
    """Softmax over a cell's lines along the chosen axes."""

    summary = "on a grid: softmax over the row of a cell, its column, or both"
    paper = "Ho et al. 2019, Axial Attention in Multidimensional Transformers"
    when = "images or videos on a large grid, where two layers carry information between any two cells"
    engine = "grid_windows"
    cost = "N·√N on an image"
    sample: ClassVar[dict[str, Any]] = {"axes": BOTH}
    options: AxialOptions

    @classmethod
    def covering_grid(cls, grid: Grid) -> dict[str, Any] | None:
        return {"axes": BOTH} if sum(size > 1 for size in grid.sizes) <= 1 else None

    def lines(self, grid: Grid) -> list[int]:
        """The axes along which cells see others.

        Raises:
            GridError: the grid has no axis with such a number.
        """
        if self.options.axes == BOTH:
            return list(range(grid.rank))
        if self.options.axes in (ROWS, COLUMNS):
            numbers = [grid.rank - (1 if self.options.axes == ROWS else 2)]
        else:
            numbers = sorted(set(map(int, self.options.axes.split("+"))))
        if numbers[0] < 0 or numbers[-1] >= grid.rank:
            raise GridError(
                f"Option 'axes' of mechanism 'axial' is {self.options.axes!r}, but the grid has {grid.rank} "
                f"{'axis' if grid.rank == 1 else 'axes'} ({grid}); choose rows, or numbers below {grid.rank}."
            )
        return numbers

    def windows(self, grid: Grid) -> list[int]:
        """Window size along each grid axis if a single axis is chosen. Each line along this axis is one window."""
        (line,) = self.lines(grid)
        return [size if axis == line else 1 for axis, size in enumerate(grid.sizes)]

    def sees(self, grid: Grid, query: Places, key: Places) -> Tensor:
        equal = torch.stack(torch.broadcast_tensors(*(q == k for q, k in zip(query, key, strict=True))))
        lines = [torch.cat([equal[:axis], equal[axis + 1 :]]).all(0) for axis in self.lines(grid)]
        return torch.stack(lines).any(0)

    def kind_of_call(self, grid: Grid) -> Kind:
        return "line" if len(self.lines(grid)) == 1 else "lines"

    def attend_cells(
        self, path: PathName, grid: Grid, q: Tensor, k: Tensor, v: Tensor, of_prefix: Tensor | None, call: AttentionCall
    ) -> Tensor:
        if path == "windows":
            return window_attention(q, k, v, grid, self.windows(grid), [0] * grid.rank, self.shared_prefix(grid), call, of_prefix)
        cells = line_attention(q, k, v, grid, self.lines(grid), self.shared_prefix(grid), call)
        return cells if of_prefix is None else torch.cat([of_prefix, cells], 2)

    def tiles(self, grid: Grid, device: torch.device) -> tuple[GatherTile, ...]:
        cells = torch.arange(grid.prefix, grid.length, device=device).view(grid.sizes)
        tiles = []
        for number, axis in enumerate(self.lines(grid)):
            lines = cells.movedim(axis, -1).reshape(1, 1, -1, grid.sizes[axis])
            tiles.append(GatherTile(lines, lines, outside=(0, 0) if number else None))  # only the first axis lists the cell itself
        return tuple(tiles)

    def covers_cells(self, grid: Grid) -> bool:
        lines, long = self.lines(grid), [axis for axis, size in enumerate(grid.sizes) if size > 1]
        return len(long) <= 1 and set(long) <= set(lines)

    def cell_pairs(self, grid: Grid) -> int:
        return grid.cells * (1 + sum(grid.sizes[axis] - 1 for axis in self.lines(grid)))
