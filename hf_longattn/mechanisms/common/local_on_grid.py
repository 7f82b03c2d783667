"""Overlapping windows on a grid: a cell sees one range of coordinates per axis."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from ...engines.common.axis_tiles import AxisWindows
from ...engines.common.byte_cache import BYTE_CACHE
from ...engines.common.call import AttentionCall, GatherTile
from ...engines.common.grid import Grid
from ...engines.common.paths import Kind, PathName
from ...engines.grid_halo import halo_attention, halo_tiles
from .on_grid import GridMechanism, Places


class LocalGridMechanism(GridMechanism):
    """A mechanism whose cells see a range of coordinates on every axis. Subclasses define :meth:`stretch`."""

    engine = "grid_halo"

    @abstractmethod
    def stretch(self, grid: Grid, axis: int, place: Any) -> tuple[Any, Any]:
        """The definition: the first and last coordinate seen from ``place`` along ``axis``. ``place`` is an integer or a tensor."""

    def steps(self, grid: Grid) -> tuple[int, ...]:
        """Distance between neighbouring visible coordinates along each axis, in cells."""
        return (1,) * grid.rank

    def grid_of(self, call: AttentionCall | None, tokens: Any | None = None) -> Grid:
        grid = super().grid_of(call, tokens)
        self.check_grid(grid)
        return grid

    def axis_windows(self, grid: Grid) -> tuple[AxisWindows, ...]:
        """For every axis, the range seen from each coordinate; cached."""

        def make() -> tuple[AxisWindows, ...]:
            windows = []
            for axis, (size, step) in enumerate(zip(grid.sizes, self.steps(grid), strict=True)):
                ends = [self.stretch(grid, axis, place) for place in range(size)]
                windows.append(AxisWindows(tuple([low for low, _ in ends]), tuple([high for _, high in ends]), step))
            return tuple(windows)

        return BYTE_CACHE.get(("axis windows", type(self), self.options, self.layer_kind, grid), make)

    def sees(self, grid: Grid, query: Places, key: Places) -> Tensor:
        seen = []
        for axis, (q, k, step) in enumerate(zip(query, key, self.steps(grid), strict=True)):
            low, high = self.stretch(grid, axis, q)
            seen.append((k >= low) & (k <= high) & ((k - q) % step == 0))
        return torch.stack(torch.broadcast_tensors(*seen)).all(0)

    def kind_of_call(self, grid: Grid) -> Kind:
        return "halo"

    def attend_cells(
        self, path: PathName, grid: Grid, q: Tensor, k: Tensor, v: Tensor, of_prefix: Tensor | None, call: AttentionCall
    ) -> Tensor:
        cells = halo_attention(path, q, k, v, grid, self.axis_windows(grid), self.shared_prefix(grid), call)
        return cells if of_prefix is None else torch.cat([of_prefix, cells], 2)

    def tiles(self, grid: Grid, device: torch.device) -> tuple[GatherTile, ...]:
        return halo_tiles(grid, self.axis_windows(grid), device)

    def covers_cells(self, grid: Grid) -> bool:
        return all(axis.sees_all for axis in self.axis_windows(grid))

    def cell_pairs(self, grid: Grid) -> int:
        return math.prod(axis.pairs for axis in self.axis_windows(grid))


def at_least(place: Any, bound: Any) -> Any:
    """``max(place, bound)``, also for tensors."""
    return place.clamp(min=bound) if isinstance(place, Tensor) else max(place, bound)


def at_most(place: Any, bound: Any) -> Any:
    """``min(place, bound)``, also for tensors."""
    return place.clamp(max=bound) if isinstance(place, Tensor) else min(place, bound)
