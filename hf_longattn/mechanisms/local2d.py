"""Local attention on a grid (Zhang et al. 2021, Multi-Scale Vision Longformer, section 3.1), on any number of axes.

With a radius of a cells along an axis, the cell at coordinate x sees the coordinates y of the grid with

    |y - x| ≤ a,  or with ``chunks``  |⌊y / a⌋ - ⌊x / a⌋| ≤ 1

on every axis. The first form is the paper's exact window. The second is its sliding chunks: a cell sees its own chunk of a × a cells and
the eight around it. Windows are cut off at the border, and no padding takes a share of the softmax. The prefix tokens are the paper's
global memory; see ``prefix_tokens``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from ..engines.common.grid import Grid
from ..errors import OptionError
from ..options import option
from .common.local_on_grid import LocalGridMechanism, at_least, at_most
from .common.on_grid import GridOptions
from .common.registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class Local2dOptions(GridOptions):
    radius: tuple[int, ...] = option((8,), "cells seen on each side along each axis: one number, or one for each axis", "cells", least=0)
    chunks: bool = option(False, "use chunks of ``radius`` cells instead of exact windows: a cell sees its chunk and the neighbouring ones")

    def check(self) -> None:
        super().check()
        if not self.radius:
            raise OptionError("Option 'radius' of mechanism 'local2d' lists no number; pass the cells seen on each side: radius=8.")
        if self.chunks and 0 in self.radius:
            raise OptionError("chunks=True needs chunks of at least one cell, but radius has a 0; pass radius=8, or leave chunks out.")


@register_mechanism("local2d")
class Local2d(LocalGridMechanism):
    """Softmax over the cells within a radius on every axis."""

    summary = "on a grid: softmax over the cells up to a radius away on every axis"
    paper = "Zhang et al. 2021, Multi-Scale Vision Longformer, §3.1"
    when = "images whose features must have no seams at the borders of windows, or a Vision Longformer"
    cost = "N·(2a + 1)² on an image"
    sample: ClassVar[dict[str, Any]] = {"radius": 2}
    options: Local2dOptions

    @classmethod
    def covering_grid(cls, grid: Grid) -> dict[str, Any]:
        return {"radius": max(grid.sizes) - 1}

    def stretch(self, grid: Grid, axis: int, place: Any) -> tuple[Any, Any]:
        radius, last = grid.per_axis(self.options.radius, "radius")[axis], grid.sizes[axis] - 1
        if self.options.chunks:
            first = place // radius * radius
            return at_least(first - radius, 0), at_most(first + 2 * radius - 1, last)
        return at_least(place - radius, 0), at_most(place + radius, last)
