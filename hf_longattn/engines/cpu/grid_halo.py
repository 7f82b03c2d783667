"""The path ``cpu-halo``: overlapping windows on a grid, by PyTorch's fused CPU kernel.

The grid is cut into tiles of queries. The keys of a tile are its own cells and a halo around them. A row of tiles along the last axis is a
strip. The keys of a strip are copied once, column by column, so that the keys of each tile are one contiguous run. The runs of neighbouring
tiles overlap: they are a strided *view* (``as_strided``) of the copy. One kernel call runs all tiles of a strip that have the same mask.
A key is copied once for each strip that sees it, not once for each tile: about (1 + halo / side) times for each axis but the last.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..common.axis_tiles import AxisWindows, TileGroup, axis_tiles, joined, outer, tile_seen, tile_sides
from ..common.byte_cache import BYTE_CACHE
from ..common.call import DispatchContext
from ..common.grid import Grid
from ..common.score_terms import NO_GRID_BIAS, GridBias
from .flash import MAX_SHARED_CELLS, additive_mask, padding_of
from .flash import why_not as why_no_kernel
from .softmax import DisjointRuns, Part, Runs, Scope, Scratch, Source, source

FORWARD_QUERIES, BACKWARD_KEYS = 24576, 24576
"""Maximum queries per forward call, and keys per backward call, over all heads. Results then stay in the CPU cache."""


def why_not(context: DispatchContext) -> str | None:
    """Why this path does not run, as a clause. ``None`` if it may run."""
    return why_no_kernel(context) or (None if "halo" in context.call.term.engines else NO_GRID_BIAS)


def _leading(tiles: Sequence[Sequence[TileGroup]]) -> Iterator[tuple[TileGroup, ...]]:
    """Every combination of one tile per axis, without the last axis."""
    return itertools.product(*([group.part(number, 1) for group in axis for number in range(group.tiles)] for axis in tiles[:-1]))


class _Strip(Scope):
    """One strip of one batch item: one tile on each leading axis, and all tiles of one residue on the last axis."""

    def __init__(self, source: Halo, item: int, leading: Sequence[TileGroup], last: Sequence[TileGroup]) -> None:
        self.source, self.item, self.tiles, self.last = source, item, leading, last
        columns = slice(last[0].residue, None, last[0].step)
        self.queries = slice(None), *[tile.places(tile.first, tile.size) for tile in leading], columns
        self.keys = slice(None), *[tile.places(tile.key_first, tile.key_size) for tile in leading], columns
        self.depth = math.prod([tile.size for tile in leading])
        self.key_depth = math.prod([tile.key_size for tile in leading])
        self.results: list[tuple[Tensor, Tensor]] = []

    def read(self, name: str, x: Tensor) -> Tensor:
        """The strip's tokens, copied column by column, ``(1, H, columns · leading, …)``. The next strip reuses the memory."""
        cells = self._cells(name, x)
        return self._in_order(self.source.scratch.take(name, tuple(cells.shape), x).copy_(cells))

    def into(self, name: str, x: Tensor) -> Tensor:
        """Buffer shaped as in :meth:`read`, which :meth:`finish` copies out. Gradients of keys start as zeros."""
        cells = self._cells(name, x)
        memory = self.source.scratch.take(name, tuple(cells.shape), x)
        self.results.append((cells, memory.zero_() if name in ("dk", "dv") else memory))
        return self._in_order(memory)

    def finish(self, results: dict[str, Tensor]) -> None:
        for cells, memory in self.results:
            cells.copy_(memory)

    def finish_backward(self, totals: dict[str, Tensor]) -> None:
        for cells, memory in self.results:
            cells.add_(memory)

    def _cells(self, name: str, x: Tensor) -> Tensor:
        """View of ``x (B, H, N, …)`` on the cells of this strip, ``(columns, *leading, H, …)``."""
        x = self.source.cells(name, x, self.item)[self.keys if name in ("k", "v", "dk", "dv", "padding") else self.queries]
        rank = len(self.source.tiles)
        return x.permute(rank, *range(1, rank), 0, *range(rank + 1, x.dim()))

    def _in_order(self, memory: Tensor) -> Tensor:
        return memory.flatten(0, len(self.source.tiles) - 1).transpose(0, 1)[None]

    @property
    def parts(self) -> Iterator[Part]:  # type: ignore[override]
        return self.source.parts(self)

    def groups(self, heads: int, backward: bool) -> Iterator[TileGroup]:
        """The tiles along the last axis, as many at a time as fit a call."""
        for group in self.last:
            tokens = heads * (group.key_size * self.key_depth if backward else group.size * self.depth)
            most = max(1, (BACKWARD_KEYS if backward else FORWARD_QUERIES) // tokens)
            for start in range(0, group.tiles, most):
                yield group.part(start, min(most, group.tiles - start))

    def mask(self, group: TileGroup, dtype: torch.dtype) -> Tensor | None:
        """The additive mask ``(1, 1, T, keys)`` of all tiles of a group; ``None`` where nothing is hidden."""
        tiles = [group, *self.tiles]  # in token order of a run: the last axis first
        patterns = tuple([(tile.seen, tile.size, tile.key_size) for tile in tiles])
        if not any(seen for seen, _, _ in patterns):
            return None

        def make() -> Tensor:
            return additive_mask(~tile_seen([tile.seen_by_queries()[None] for tile in tiles]), dtype)[None]

        cells = self.depth * self.key_depth * group.size * group.key_size
        return make() if cells > MAX_SHARED_CELLS else BYTE_CACHE.get(("mask of a tile", patterns, dtype), make)

    def entries(self, group: TileGroup, bias: GridBias) -> Tensor:
        """Indices into the bias table for the pairs of a tile, ``(T, keys)``."""
        last, *leading = outer([tile.distances()[None] for tile in (group, *self.tiles)])
        return joined(bias.entries([*leading, last]), 1 + len(leading))[0]


@source
class Halo(Source):
    """Attention of grid cells to their windows and to the shared prefix tokens. Prefix tokens have no output.

    - learned: the table of a :class:`GridBias`, if any.
    - fixed: key mask ``(B, N)`` bool, or None.
    - numbers: see :func:`halo_numbers`.
    """

    name = "halo"

    @staticmethod
    def skips(numbers: Sequence[int]) -> int:
        return numbers[1]

    def read_arguments(self, learned: Sequence[Tensor], fixed: Sequence[Tensor | None], numbers: Sequence[int]) -> None:
        (self.key_mask,) = fixed
        rank, prefix, self.shared, *rest = numbers
        unread = iter(rest)
        axes = []
        for _ in range(rank):
            size, step, bias_size, bias_step = itertools.islice(unread, 4)
            low, high = (tuple(itertools.islice(unread, size)) for _ in range(2))
            axes.append((size, AxisWindows(low, high, step), bias_size, bias_step))
        sizes, windows, bias_sizes, bias_steps = zip(*axes, strict=True)
        self.grid = Grid(sizes, prefix)
        self.tiles = tuple(axis_tiles(axis, side) for axis, side in zip(windows, tile_sides(windows), strict=True))
        self.bias = GridBias(learned[0].detach().to(self.dtype), bias_sizes, bias_steps, self.grid) if learned else None
        self.may_see_nothing = self.key_mask is not None  # type: ignore[misc]
        self.scratch = Scratch()
        self.biased: dict[Any, tuple[Tensor, Tensor]] = {}
        """Shape and pattern of a tile -> its mask with the bias added, and the table indices of its pairs."""

    def scopes(self, backward: bool) -> Iterator[Scope]:
        self.is_backward = backward
        for item in range(len(self.q)):
            self.cells_of_item: dict[str, Tensor] = {}
            padding = padding_of(self.key_mask, item, self.dtype)
            self.padding = None if padding is None else padding[None, None]
            for tile in _leading(self.tiles):
                for _, last in itertools.groupby(self.tiles[-1], operator.attrgetter("residue")):
                    yield _Strip(self, item, tile, [*last])
        if self.shared:
            yield Scope([self._shared_part()])

    def cells(self, name: str, x: Tensor, item: int) -> Tensor:
        """The cells of one batch item of ``x (B, H, N, …)``, ``(H, *sizes, …)``."""
        if name not in self.cells_of_item:
            x = x[item if len(x) > 1 else 0]
            self.cells_of_item[name] = x[:, x.shape[1] - self.grid.cells :].unflatten(1, self.grid.sizes)
        return self.cells_of_item[name]

    def parts(self, strip: _Strip) -> Iterator[Part]:
        padding = None if self.padding is None else strip.read("padding", self.padding)
        if padding is not None and not bool(padding.any()):
            padding = None
        for group in strip.groups(self.q.shape[1], self.is_backward):
            depth, key_depth, of_scores = strip.depth, strip.key_depth, None
            queries = DisjointRuns(group.first * depth, group.size * depth, group.tiles, group.size * depth)
            keys = Runs(group.key_first * key_depth, group.key_size * key_depth, group.tiles, group.size * key_depth)
            if self.bias is None:
                mask = strip.mask(group, self.dtype)
            else:
                mask, entries = self._with_bias(strip, group, self.bias)
                of_scores = functools.partial(self._add_to_bias, entries.flatten()) if self.totals else None
            if padding is not None:
                hidden = keys.of(padding)[:, :, None]
                if bool(hidden.any()):
                    mask = hidden.contiguous() if mask is None else mask + hidden
            yield Part(queries, keys, mask, of_scores=of_scores)

    def _with_bias(self, strip: _Strip, group: TileGroup, bias: GridBias) -> tuple[Tensor, Tensor]:
        key = tuple((tile.seen, tile.size, tile.key_size, tile.ahead) for tile in (group, *strip.tiles))
        if key not in self.biased:
            entries, mask = strip.entries(group, bias), strip.mask(group, self.dtype)
            term = bias.over(entries)[None]
            self.biased[key] = (term if mask is None else term.add_(mask), entries)
        return self.biased[key]

    def _add_to_bias(self, entries: Tensor, of_scores: Tensor) -> None:
        self.totals[0].index_add_(1, entries, of_scores.sum(0).flatten(1))

    def _shared_part(self) -> Part:
        """The part of all cells over the prefix tokens that they share."""
        prefix, mask, of_scores = self.grid.prefix, None, None
        bias = None if self.bias is None else self.bias.to_prefix
        if self.key_mask is not None:
            mask = additive_mask(~self.key_mask[:, prefix - self.shared : prefix], self.dtype)[:, None, None]
        if bias is not None:
            mask = bias[None, :, None, None] + (0 if mask is None else mask)
            if self.totals:
                total = self.totals[0]
                of_scores = lambda gradient: total[:, -2].add_(gradient.sum((0, 2, 3)))  # noqa: E731
        if mask is not None:  # copied for every head, as the kernel requires
            mask = mask.expand(*self.q.shape[:2], 1, self.shared).contiguous()
        return Part(Runs(0, self.grid.cells), Runs(prefix - self.shared, self.shared), mask, merges=True, of_scores=of_scores)


def halo_numbers(grid: Grid, windows: Sequence[AxisWindows], shared: int, bias: GridBias | None) -> list[int]:
    """The argument ``numbers`` of :class:`Halo`: the grid, the windows and the shape of the bias as integers.

    Args:
        shared: how many of the last prefix tokens every cell sees.
    """
    sizes, steps = ((0,), (0,)) if bias is None else (bias.sizes, bias.dilation)
    bias_sizes, bias_steps = grid.per_axis(sizes, "bias"), grid.per_axis(steps, "bias")
    numbers = [grid.rank, grid.prefix, shared]
    for axis, bias_size, bias_step in zip(windows, bias_sizes, bias_steps, strict=True):
        numbers += [len(axis.low), axis.step, bias_size, bias_step, *axis.low, *axis.high]
    return numbers
