"""The halo engine: softmax attention of grid cells over overlapping windows. A window is a range of coordinates on each axis.

Queries run in tiles. The keys of a tile are its cells and a halo around them. On a CPU, :mod:`.cpu.grid_halo` runs the tiles. Elsewhere,
and in exported graphs, the keys of all tiles are gathered by index, and one fused call with a mask runs all tiles. Time and memory are
linear in the number of cells: N times the keys that a tile sees.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .common.axis_tiles import AxisWindows, axis_tiles, joined, outer, tile_seen
from .common.byte_cache import BYTE_CACHE
from .common.call import AttentionCall, DispatchContext, GatherTile
from .common.dense import fused_attention, same_dtype
from .common.grid import Grid
from .common.paths import Path
from .common.score_terms import NO_GRID_BIAS, GridBias
from .cpu.grid_halo import halo_numbers
from .cpu.softmax import attend_parts

GATHERED_QUERIES = 64
"""Target queries per tile with gathered keys. Tile sides are rounded to whole cells."""


def why_not(context: DispatchContext) -> str | None:
    """Why this engine does not run, as a clause. ``None`` if it may run."""
    return None if "halo" in context.call.term.engines else NO_GRID_BIAS


def halo_attention(
    path: Path, q: Tensor, k: Tensor, v: Tensor, grid: Grid, windows: tuple[AxisWindows, ...], shared: int, call: AttentionCall
) -> Tensor:
    """Softmax attention of grid cells over their windows and the shared prefix tokens.

    Args:
        path: ``"cpu-halo"`` or ``"halo"``, as the dispatcher chose.
        q, k, v: ``(B, H, N, D)`` of the grid's tokens. The caller computes the output of prefix tokens.
        windows: the coordinates that cells see along each axis.
        shared: how many of the last prefix tokens every cell sees: 0, or all.
        call: gives padding mask, scale and dropout, and a :class:`GridBias` if any.
    Returns:
        The output of the cells, ``(B, H, cells, D)``. Rows of padding are finite but meaningless.
    """
    q, k, v = same_dtype(q, k, v)
    bias = call.term.grid_bias
    if path == "cpu-halo":
        learned, numbers = [] if bias is None else [bias.table], halo_numbers(grid, windows, shared, bias)
        return attend_parts("halo", q, k, v, call.scale_for(q.shape[-1]), learned, [call.key_mask], numbers)
    return _gathered(q, k, v, grid, windows, shared, bias, call)


class _AxisIndex(NamedTuple):
    """Tiles of equal size along one axis, as lists of coordinates."""

    queries: Tensor
    """``(tiles, side)``; -1 where a tile reaches past the end."""
    keys: Tensor
    """``(tiles, width)``; past the end, the last coordinate is repeated."""
    seen: Tensor
    """``(tiles, side, width)`` bool. Slots without a query see every key, since an empty softmax is NaN."""
    back: Tensor
    """``(cells,)``, the slot of every coordinate in the flattened ``queries``."""


def _axis_index(windows: AxisWindows, side: int, device: torch.device) -> _AxisIndex:
    length, step = len(windows.low), windows.step
    width = max(
        (max(windows.high[first : first + side * step : step]) - min(windows.low[first : first + side * step : step])) // step + 1
        for residue in range(min(step, length))
        for first in range(residue, length, side * step)
    )
    ends = torch.tensor(windows.low, device=device), torch.tensor(windows.high, device=device)
    parts = []
    for residue in range(min(step, length)):
        places = torch.arange(residue, length, step, device=device)
        count = (length - residue + step - 1) // step
        tiles = -(-count // side)
        slots = torch.arange(tiles * side, device=device).view(tiles, side)
        filled = slots < count
        queries = places[slots.clamp(max=count - 1)]
        low, high = (end[queries] for end in ends)
        start = torch.where(filled, low, length).amin(1, keepdim=True)
        keys = start + torch.arange(width, device=device) * step
        seen = (keys[:, None] >= low[..., None]) & (keys[:, None] <= high[..., None]) | ~filled[..., None]
        parts.append((torch.where(filled, queries, -1), keys.clamp(max=residue + (count - 1) * step), seen))
    queries, keys, seen = (torch.cat([part[number] for part in parts]) for number in range(3))
    places = torch.arange(queries.numel(), device=device)
    back = places.new_zeros(length + 1).scatter(0, torch.where(queries < 0, length, queries).flatten(), places)[:length]
    return _AxisIndex(queries, keys, seen, back)


def _gathered(
    q: Tensor, k: Tensor, v: Tensor, grid: Grid, windows: tuple[AxisWindows, ...], shared: int, bias: GridBias | None, call: AttentionCall
) -> Tensor:
    """:func:`halo_attention` in operations of every runtime. Keys are gathered by index, and one fused call runs all tiles."""
    rank, (batch, heads, _, width) = grid.rank, q.shape
    sides = _sides(windows)
    axes = [
        BYTE_CACHE.get(("axis of tiles", axis, side, q.device), functools.partial(_axis_index, axis, side, q.device))
        for axis, side in zip(windows, sides, strict=True)
    ]
    queries, keys = [axis.queries.clamp(min=0) for axis in axes], [axis.keys for axis in axes]
    tiles, tile_keys = math.prod(len(index) for index in queries), math.prod(index.shape[1] for index in keys)

    def cut(x: Tensor, index: Sequence[Tensor], first: int) -> Tensor:
        """Cut the grid's axes of ``x``, which begin at axis ``first``, into tiles: ``(…, *tiles, *inside, …)``."""
        for axis, places in enumerate(index):
            x = x.index_select(first + axis, places.flatten())
        x = x.reshape(*x.shape[:first], *(size for places in index for size in places.shape), *x.shape[first + rank :])
        numbers, inside = range(first, first + 2 * rank, 2), range(first + 1, first + 2 * rank, 2)
        return x.permute(*range(first), *numbers, *inside, *range(first + 2 * rank, x.dim()))

    def of_tiles(x: Tensor, index: Sequence[Tensor]) -> Tensor:
        """The tokens of every tile, ``(B · tiles, H, T, D)``."""
        x = cut(x[:, :, grid.prefix :].unflatten(2, grid.sizes), index, 2).flatten(2 + rank, 1 + 2 * rank).flatten(2, 1 + rank)
        return x.transpose(1, 2).reshape(batch * tiles, x.shape[1], x.shape[3], width)

    mask = tile_seen([axis.seen for axis in axes])[None]
    if call.key_mask is not None:
        real = cut(call.key_mask[:, grid.prefix :].unflatten(1, grid.sizes), keys, 1).reshape(batch, tiles, 1, tile_keys)
        mask = mask & real
    parts = [of_tiles(q, queries), of_tiles(k, keys), of_tiles(v, keys)]
    if shared:
        front = slice(grid.prefix - shared, grid.prefix)
        parts[1:] = [torch.cat([x[:, :, front].repeat_interleave(tiles, 0), part], 2) for x, part in zip((k, v), parts[1:], strict=True)]
        visible = mask.new_ones(1, 1, 1, shared) if call.key_mask is None else call.key_mask[:, None, None, front]
        mask = torch.cat([visible.expand(mask.shape[0], tiles, mask.shape[2], -1), mask], 3)
    mask = mask.expand(batch, -1, -1, -1).reshape(batch * tiles, 1, *mask.shape[2:])
    if call.key_mask is not None:
        mask = mask | ~mask.any(-1, keepdim=True)  # padding cells that would see no key see all
    if bias is not None:
        term = _tile_bias(bias, axes, windows, shared).to(torch.promote_types(q.dtype, torch.float32))
        term = term.repeat(batch, 1, 1, 1).masked_fill(~mask, torch.finfo(term.dtype).min)
        mask = term.to(q.dtype) if q.dtype in (torch.float32, torch.float64) else term.clamp(min=torch.finfo(q.dtype).min).to(q.dtype)
    out = fused_attention(*parts, attn_mask=mask, dropout_p=call.dropout, scale=call.scale)
    out = out.view(batch, *(len(index) for index in queries), heads, *sides, width)
    order = [axis for pair in zip(range(1, 1 + rank), range(2 + rank, 2 + 2 * rank), strict=True) for axis in pair]
    out = out.permute(0, 1 + rank, *order, 2 + 2 * rank)
    out = out.reshape(batch, heads, *(index.numel() for index in queries), width)
    for number, axis in enumerate(axes):
        out = out.index_select(2 + number, axis.back)
    return out.flatten(2, 1 + rank)


def _sides(windows: Sequence[AxisWindows]) -> list[int]:
    """The sides of a tile with gathered keys, along each axis."""
    return [min(len(axis.low), round(GATHERED_QUERIES ** (1 / len(windows)))) for axis in windows]


def _tile_bias(bias: GridBias, axes: Sequence[_AxisIndex], windows: Sequence[AxisWindows], shared: int) -> Tensor:
    """The bias of every tile, ``(tiles, H, T, shared + keys)``."""
    distances = outer([axis.queries.clamp(min=0)[:, :, None] - axis.keys[:, None, :] for axis in axes])
    return bias.with_prefix(bias.over(joined(bias.entries(distances), len(windows))).transpose(0, 1), shared)


def halo_tiles(grid: Grid, windows: tuple[AxisWindows, ...], device: torch.device) -> tuple[GatherTile, ...]:
    """The query-key pairs of the windows, as tiles of positions."""
    cells = torch.arange(grid.prefix, grid.length, device=device).view(grid.sizes)
    by_axis = [
        [(part, group) for part in axis_tiles(axis, side) for group in part.groups]
        for axis, side in zip(windows, _sides(windows), strict=True)
    ]
    tiles = []
    for groups in itertools.product(*by_axis):
        queries, keys = (_runs(cells, groups, of_keys) for of_keys in (False, True))
        bias = None
        if any(group.seen for _, group in groups):
            seen = [group.seen_by_queries(device)[None] for _, group in groups]
            bias = tile_seen(seen)[None, None]
        tiles.append(GatherTile(queries, keys, bias=bias))
    return tuple(tiles)


def _runs(cells: Tensor, groups: Sequence[tuple], of_keys: bool) -> Tensor:
    """The positions in every tile, given one group per axis: ``(1, 1, tiles, T)``."""
    rank = len(groups)
    for axis, (part, group) in enumerate(groups):
        first, size = (group.key_first, group.key_size) if of_keys else (group.first, group.size)
        places = torch.arange(group.tiles)[:, None] * group.size + torch.arange(first, first + size)
        index = (part.residue + places * part.step).to(cells.device)
        cells = cells.index_select(2 * axis, index.flatten()).unflatten(2 * axis, tuple(index.shape))
    cells = cells.permute(*range(0, 2 * rank, 2), *range(1, 2 * rank, 2))
    return cells.reshape(1, 1, math.prod(group.tiles for _, group in groups), -1)
