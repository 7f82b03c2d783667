"""Windows that overlap on a grid: a stretch of places for every place of an axis, and tiles of queries with their halo of keys.

What a cell sees is the product of one stretch on each axis. An axis is cut into tiles of neighbouring queries; the keys of a tile are the
places that any of its queries sees, its halo included. Tiles whose queries see the same places of their keys are one group: they share a
mask, and their keys are at equal steps.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from .grid import Grid

TILE_QUERIES = 32
"""Most queries of a tile: PyTorch's fused kernel for the CPU has blocks of as many, and more would each see keys that only others need."""
TILE_SIDES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
COST_OF_COPY, COST_OF_KEY, COST_OF_TILE, COST_OF_CALL = 9, 13, 200, 600
"""What copying a key, a key of a tile, a tile and a call of the kernel cost, in pairs: measured on one core, for 12 heads of width 64."""


class AxisWindows(NamedTuple):
    """What the cells of an axis see along it: from place x every ``step``-th place, ``low[x]`` the first and ``high[x]`` the last.

    Places see only those that are ``step`` or a multiple of it away; both ends are among them.
    """

    low: tuple[int, ...]
    high: tuple[int, ...]
    step: int = 1

    @property
    def pairs(self) -> int:
        """The number of pairs."""
        return sum((high - low) // self.step + 1 for low, high in zip(self.low, self.high, strict=True))

    @property
    def sees_all(self) -> bool:
        """Whether every place sees every place."""
        return self.step == 1 and max(self.low) == 0 and min(self.high) == len(self.low) - 1


class TileGroup(NamedTuple):
    """``tiles`` tiles of ``size`` queries each, and as many stretches of keys, ``size`` apart.

    All numbers count the places of one residue class: ``first`` is the first query, ``key_first`` the first key. ``seen`` lists for every
    query of a tile the first and the last key that it sees, from the tile's first key on; it is empty where all see all.
    """

    first: int
    size: int
    tiles: int
    key_first: int
    key_size: int
    seen: tuple[tuple[int, int], ...]

    @property
    def ahead(self) -> int:
        """How far the first query is from the first key."""
        return self.first - self.key_first

    def part(self, start: int, tiles: int) -> TileGroup:
        """``tiles`` of the tiles, from ``start`` on."""
        moved = start * self.size
        return self._replace(first=self.first + moved, key_first=self.key_first + moved, tiles=tiles)

    def single_tiles(self) -> list[TileGroup]:
        """Each tile as a group."""
        return [self.part(number, 1) for number in range(self.tiles)]


class AxisClass(NamedTuple):
    """The places ``residue, residue + step, …`` of an axis, which see each other only, as tiles."""

    residue: int
    step: int
    groups: tuple[TileGroup, ...]

    def places(self, first: int, size: int) -> slice:
        """The places on the axis of ``size`` places of the class."""
        return slice(self.residue + first * self.step, self.residue + (first + size - 1) * self.step + 1, self.step)


AxisTiles = tuple[AxisClass, ...]


@functools.lru_cache(maxsize=1024)
def axis_tiles(windows: AxisWindows, side: int) -> AxisTiles:
    """The tiles of ``side`` queries of an axis; those at the end of a class may be shorter."""
    classes = []
    for residue in range(min(windows.step, len(windows.low))):
        low, high = ([end // windows.step for end in ends[residue :: windows.step]] for ends in (windows.low, windows.high))
        groups: list[TileGroup] = []
        for first in range(0, len(low), side):
            firsts, lasts = low[first : first + side], high[first : first + side]
            start, size = min(firsts), len(firsts)
            width = max(lasts) + 1 - start
            seen = tuple((a - start, b - start) for a, b in zip(firsts, lasts, strict=True))
            tile = TileGroup(first, size, 1, start, width, () if set(seen) == {(0, width - 1)} else seen)
            before = groups[-1] if groups else None
            if before is not None and before.part(before.tiles, 1) == tile:
                groups[-1] = before._replace(tiles=before.tiles + 1)
            else:
                groups.append(tile)
        classes.append(AxisClass(residue, windows.step, tuple(groups)))
    return tuple(classes)


class _AxisCost(NamedTuple):
    side: int
    groups: int
    tiles: int
    keys: int
    pairs: int


def _axis_cost(windows: AxisWindows, side: int) -> _AxisCost:
    groups = [group for part in axis_tiles(windows, side) for group in part.groups]
    keys, pairs = (sum(group.tiles * group.key_size * factor(group) for group in groups) for factor in (lambda _: 1, lambda g: g.size))
    return _AxisCost(side, len(groups), sum(group.tiles for group in groups), keys, pairs)


@functools.lru_cache(maxsize=256)
def tile_sides(windows: tuple[AxisWindows, ...]) -> tuple[int, ...]:
    """The sides of tiles of up to :data:`TILE_QUERIES` that cost least: few keys that not all queries see, few copies, few calls."""
    by_axis = [[_axis_cost(axis, side) for side in sorted({min(side, len(axis.low)) for side in TILE_SIDES})] for axis in windows]
    best, least = (1,) * len(windows), math.inf
    for costs in itertools.product(*by_axis):
        if math.prod(cost.side for cost in costs) > TILE_QUERIES:
            continue
        *leading, last = costs
        strips = math.prod(cost.tiles for cost in leading)
        cells = len(windows[-1].low)
        copied, calls = math.prod(cost.keys for cost in leading) * cells, strips * last.groups
        tiles = strips * last.tiles
        pairs, keys = math.prod(cost.pairs for cost in costs), math.prod(cost.keys for cost in costs)
        cost = pairs + COST_OF_KEY * keys + COST_OF_COPY * copied + COST_OF_TILE * tiles + COST_OF_CALL * calls
        if cost < least:
            best, least = tuple(cost.side for cost in costs), cost
    return best


def split_windows(grid: Grid, low: Sequence[int], high: Sequence[int], steps: Sequence[int]) -> tuple[AxisWindows, ...]:
    """The windows of every axis, from their ends one axis after the other, as operators take them."""
    windows, start = [], 0
    for size, step in zip(grid.sizes, steps, strict=True):
        stop = start + size
        windows.append(AxisWindows(tuple(low[start:stop]), tuple(high[start:stop]), step))
        start = stop
    return tuple(windows)
