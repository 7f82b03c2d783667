"""Overlapping windows on a grid, and tiles of queries with their keys.

Along an axis, a coordinate sees a range of coordinates. A cell of the grid sees the product of its ranges. An axis is cut into tiles of
neighbouring queries. The keys of a tile are all coordinates that any of its queries sees. Tiles form a group if their queries see the same
keys, counted from the first key of the tile. The tiles of a group share a mask, and their first keys are equally spaced.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .score_terms import GridBias

TILE_QUERIES = 32
"""Maximum queries per tile: the block size of PyTorch's fused CPU kernel. A larger tile would add keys that only other queries need."""
TILE_SIDES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
COST_OF_COPY, COST_OF_KEY, COST_OF_TILE, COST_OF_CALL = 9, 13, 200, 600
"""Costs of a copied key, a key in a tile, a tile and a kernel call, relative to one pair. Measured on one core, 12 heads of width 64."""


class AxisWindows(NamedTuple):
    """Windows along one axis: coordinate x sees every ``step``-th coordinate from ``low[x]`` to ``high[x]``.

    Both ends are included, and lie a multiple of ``step`` away from x.
    """

    low: tuple[int, ...]
    high: tuple[int, ...]
    step: int = 1

    @property
    def pairs(self) -> int:
        """The number of query-key pairs along the axis."""
        return sum((high - low) // self.step + 1 for low, high in zip(self.low, self.high, strict=True))

    @property
    def sees_all(self) -> bool:
        """Whether every coordinate sees all others."""
        return self.step == 1 and max(self.low) == 0 and min(self.high) == len(self.low) - 1


class TileGroup(NamedTuple):
    """``tiles`` tiles of ``size`` queries, each with ``key_size`` keys. Tiles, and their keys, start ``size`` apart.

    They hold only the coordinates ``residue, residue + step, …``, which see only each other. All other fields count only these coordinates:
    ``first`` is the first query, ``key_first`` the first key. ``seen`` has the first and the last visible key of every query in a tile,
    counted from the tile's first key. It is empty if every query sees every key.
    """

    residue: int
    step: int
    first: int
    size: int
    tiles: int
    key_first: int
    key_size: int
    seen: tuple[tuple[int, int], ...]

    @property
    def ahead(self) -> int:
        """Number of coordinates from the first key to the first query."""
        return self.first - self.key_first

    def distances(self) -> Tensor:
        """Distances in cells, query - key, of a tile's pairs, ``(size, key_size)``."""
        return (torch.arange(self.ahead, self.ahead + self.size)[:, None] - torch.arange(self.key_size)) * self.step

    def seen_by_queries(self) -> Tensor:
        """The keys that each query of a tile sees, ``(size, key_size)`` bool."""
        if not self.seen:
            return torch.ones(self.size, self.key_size, dtype=torch.bool)
        first, last = torch.tensor(self.seen).t()[..., None]
        keys = torch.arange(self.key_size)
        return (keys >= first) & (keys <= last)

    def places(self, first: int, size: int) -> slice:
        """``size`` coordinates of this residue from number ``first`` on, as a slice of the axis."""
        return slice(self.residue + first * self.step, self.residue + (first + size - 1) * self.step + 1, self.step)

    def part(self, start: int, tiles: int) -> TileGroup:
        """The group of ``tiles`` tiles that begins with tile ``start``."""
        moved = start * self.size
        return self._replace(first=self.first + moved, key_first=self.key_first + moved, tiles=tiles)


@functools.lru_cache(maxsize=1024)
def axis_tiles(windows: AxisWindows, side: int) -> tuple[TileGroup, ...]:
    """The tiles of an axis, residue by residue. A tile has ``side`` queries; the last one of a residue may have fewer."""
    groups: list[TileGroup] = []
    for residue in range(min(windows.step, len(windows.low))):
        low, high = ([end // windows.step for end in ends[residue :: windows.step]] for ends in (windows.low, windows.high))
        for first in range(0, len(low), side):
            firsts, lasts = low[first : first + side], high[first : first + side]
            start, size = min(firsts), len(firsts)
            width = max(lasts) + 1 - start
            seen = tuple((a - start, b - start) for a, b in zip(firsts, lasts, strict=True))
            seen = () if set(seen) == {(0, width - 1)} else seen
            tile = TileGroup(residue, windows.step, first, size, 1, start, width, seen)
            before = groups[-1] if groups else None
            if before is not None and before.part(before.tiles, 1) == tile:
                groups[-1] = before._replace(tiles=before.tiles + 1)
            else:
                groups.append(tile)
    return tuple(groups)


class _AxisCost(NamedTuple):
    side: int
    groups: int
    tiles: int
    keys: int
    pairs: int


def _axis_cost(windows: AxisWindows, side: int) -> _AxisCost:
    groups = axis_tiles(windows, side)
    tiles, keys = sum(group.tiles for group in groups), sum(group.tiles * group.key_size for group in groups)
    return _AxisCost(side, len(groups), tiles, keys, sum(group.tiles * group.key_size * group.size for group in groups))


@functools.lru_cache(maxsize=256)
def tile_sides(windows: tuple[AxisWindows, ...]) -> tuple[int, ...]:
    """The cheapest tile sides. Cost: a weighted sum of pairs, keys, copied keys, tiles and calls. Limit: :data:`TILE_QUERIES` queries."""
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


def outer(tables: Sequence[Tensor]) -> list[Tensor]:
    """The table ``(tiles, side, width)`` of every axis, as a view that broadcasts to ``(*tiles, *sides, *widths)``."""
    rank, placed = len(tables), []
    for axis, table in enumerate(tables):
        shape = [1] * (3 * rank)
        shape[axis], shape[rank + axis], shape[2 * rank + axis] = table.shape
        placed.append(table.view(shape))
    return placed


def joined(table: Tensor, rank: int) -> Tensor:
    """Reshape ``table (*tiles, *sides, *widths)`` to ``(tiles, T, keys)``."""
    return table.flatten(2 * rank).flatten(rank, 2 * rank - 1).flatten(0, rank - 1)


def tile_seen(tables: Sequence[Tensor]) -> Tensor:
    """Which keys the queries of every tile see, ``(tiles, T, keys)`` bool."""
    first, *rest = outer(tables)
    for table in rest:
        first = first & table
    return joined(first, len(tables))


def window_bias(bias: GridBias, sizes: Sequence[int], shared: int = 0) -> Tensor:
    """The bias of a window with ``sizes`` cells along each axis, ``(1, H, T, shared + T)``.

    shared: number of prefix tokens, which every cell sees. Their columns come first.
    """
    places = [torch.arange(size) for size in sizes]
    distances = outer([(place[:, None] - place)[None] for place in places])
    term = bias.over(joined(bias.entries(distances), len(sizes))).transpose(0, 1)
    return bias.with_prefix(term, shared)
