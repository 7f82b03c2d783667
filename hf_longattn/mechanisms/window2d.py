"""Windows on a grid that do not overlap (Liu et al. 2021, Swin Transformer, sections 3.1-3.2; Li et al. 2022, ViTDet, section 3), of any
rank: a picture, a video, a spectrogram.

With windows of w cells along an axis, the cell at place x is in the window number

    ⌊x / w⌋,  or in a shifted layer  ⌊(x + w - ⌊w/2⌋) / w⌋

and sees the cells whose numbers are equal on every axis. ``shift=alternate`` shifts every second layer, as Swin does, whose mask keeps the
partial windows at the borders apart. An axis that one window covers is not shifted. Partial windows have their real cells only, whereas
Swin, ViTDet and SAM fill them up with zeros that take a share of the softmax.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..engines.common.call import AttentionCall, GatherTile
from ..engines.common.dense import repeat_heads
from ..engines.common.grid import Grid
from ..engines.dispatch import choose_on_grid
from ..engines.grid_windows import regions, window_attention
from ..errors import GridError
from ..options import option
from .common.on_grid import GLOBAL, GridMechanism, GridOptions, Places
from .common.registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class Window2dOptions(GridOptions):
    window: tuple[int, ...] = option((14,), "cells of a window along each axis: one number, or one for each axis", "cells", least=1)
    shift: str = option(
        "none", "'alternate': windows of every second layer are shifted by half a window; 'none': never", choices=("none", "alternate")
    )


@register_mechanism("window2d")
class Window2d(GridMechanism):
    """Softmax inside windows of a grid that do not overlap."""

    summary = "on a grid: softmax inside windows that do not overlap, shifted in every second layer or not"
    paper = "Liu et al. 2021, Swin Transformer, §3.1-3.2; Li et al. 2022, ViTDet, §3"
    engine: ClassVar[str] = "grid_windows"
    cost = "N·w² on a picture"
    options_type = Window2dOptions
    sample: ClassVar[dict[str, Any]] = {"window": 4}
    options: Window2dOptions

    @property
    def shifted(self) -> bool:
        """Whether the windows of this layer are shifted."""
        return self.options.shift == "alternate" and self.layer % 2 == 1

    @property
    def layer_kind(self) -> int:
        return int(self.shifted)

    def windows(self, grid: Grid) -> tuple[list[int], list[int]]:
        """Cells of a window along each axis, and what is added to a place before it is divided by them."""
        sizes = self.options.window if isinstance(self.options.window, tuple) else (self.options.window,)
        window = [min(size, axis) for size, axis in zip(grid.per_axis(sizes, "window"), grid.sizes, strict=True)]
        return window, [size - size // 2 if self.shifted and size < axis else 0 for size, axis in zip(window, grid.sizes, strict=True)]

    def sees(self, grid: Grid, query: Places, key: Places) -> Tensor:
        window, shift = self.windows(grid)
        same = [(q + s) // w == (k + s) // w for q, k, w, s in zip(query, key, window, shift, strict=True)]
        return torch.stack(torch.broadcast_tensors(*same)).all(0)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        grid = self.grid_of(call, k.shape[2])
        if choose_on_grid("windows", q, k, call, self.covers_grid(grid)) != "windows":
            return super().forward(q, k, v, call)
        window, shift = self.windows(grid)
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        shared = grid.prefix if self.options.prefix_tokens == GLOBAL else 0
        return window_attention(q, k, v, grid, window, shift, shared, call, self.prefix_rows(q, k, v, grid, call) if grid.prefix else None)

    def tiles(self, grid: Grid, device: torch.device) -> tuple[GatherTile, ...]:
        cells = torch.arange(grid.prefix, grid.length, device=device).view(grid.sizes)
        tiles = []
        for region in regions(grid, *self.windows(grid)):
            part = cells[tuple(stretch.cells for stretch in region)]
            inner = [number for stretch in region for number in (stretch.windows, stretch.size)]
            numbers, inside = range(0, 2 * grid.rank, 2), range(1, 2 * grid.rank, 2)
            windows = part.reshape(inner).permute(*numbers, *inside).reshape(1, 1, math.prod(inner[::2]), -1)
            tiles.append(GatherTile(windows, windows))
        return tuple(tiles)

    def grid_blocks(self, grid: Grid) -> tuple[int, ...] | None:
        return None if self.shifted else tuple(self.windows(grid)[0])

    def check_grid(self, grid: Grid) -> None:
        window = grid.per_axis(self.options.window, "window")
        if any(size > axis for size, axis in zip(window, grid.sizes, strict=True)) and self.covers_grid(grid):
            raise GridError(
                f"A window of {' × '.join(map(str, window))} cells is larger than the grid of {' × '.join(map(str, grid.sizes))}, so that "
                "every token sees every token; choose a smaller window, or the mechanism 'full'."
            )

    def covers_grid(self, grid: Grid) -> bool:
        everyone = not grid.prefix or self.options.prefix_tokens == GLOBAL
        return everyone and all(size >= axis for size, axis in zip(self.windows(grid)[0], grid.sizes, strict=True))

    def cell_pairs(self, grid: Grid) -> int:
        return sum(math.prod(stretch.windows * stretch.size**2 for stretch in region) for region in regions(grid, *self.windows(grid)))
