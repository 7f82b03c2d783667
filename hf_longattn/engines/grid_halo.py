"""The halo engine: softmax attention of grid cells over overlapping windows. A window is a range of coordinates on each axis.

Queries run in tiles. The keys of a tile are its cells and a halo around them. On a CPU, :mod:`.cpu.grid_halo` runs the tiles. Elsewhere,
and in exported graphs, the keys of all tiles are gathered by index. One fused call with a mask then runs all tiles. Time and memory are
linear: the number of cells times the keys of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .common.axis_tiles import AxisWindows, tile_seen
from .common.byte_cache import BYTE_CACHE
from .common.call import AttentionCall, DispatchContext, GatherTile
from .common.dense import fused_attention, same_dtype
from .common.grid import Grid
from .common.paths import Path
from .common.score_terms import NO_GRID_BIAS
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
    return _gathered(q, k, v, grid, windows, shared, call)


class _HaloTiles(NamedTuple):
    """Tiles of equal size that hold every cell once. Numbers are positions of tokens."""

    queries: Tensor
    """``(tiles, T)``, -1 for an empty slot."""
    keys: Tensor
    """``(tiles, keys)``. A tile at a border repeats some position, which no query sees there."""
    seen: Tensor
    """``(tiles, T, keys)`` bool. Empty slots see every key, since an empty softmax is NaN."""
    slots: Tensor
    """``(cells,)``, the slot of every cell in the flattened ``queries``."""


def _halo_tiles(grid: Grid, windows: tuple[AxisWindows, ...], device: torch.device) -> _HaloTiles:
    """The tiles; cached. Their sides are about the same on all axes."""

    def make() -> _HaloTiles:
        side = round(GATHERED_QUERIES ** (1 / grid.rank))
        axes = [_axis_tiles(axis, min(len(axis.low), side), device) for axis in windows]
        cells = torch.arange(grid.prefix, grid.length, device=device).view(grid.sizes)
        with_end = F.pad(cells, (0, 1) * grid.rank, value=-1)
        queries, keys = _cut(with_end, [of_queries for of_queries, _, _ in axes]), _cut(cells, [of_keys for _, of_keys, _ in axes])
        places = torch.where(queries < 0, grid.length, queries).flatten()
        slots = places.new_zeros(grid.length + 1).scatter(0, places, torch.arange(len(places), device=device))
        return _HaloTiles(queries, keys, tile_seen([seen for _, _, seen in axes]), slots[grid.prefix : grid.length])

    return BYTE_CACHE.get(("halo tiles", grid, windows, device), make)


def _axis_tiles(windows: AxisWindows, side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The tiles along an axis: coordinates of queries and of keys, and which keys a query sees.

    Returns:
        ``(tiles, side)``, where slots past the end hold the length of the axis; ``(tiles, width)``, where the last coordinate is repeated
        past the end; and ``(tiles, side, width)`` bool, True in slots without a query.
    """
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
        tiles = -(-len(places) // side)
        slots = torch.arange(tiles * side, device=device).view(tiles, side)
        filled = slots < len(places)
        queries = places[slots.clamp(max=len(places) - 1)]
        low, high = (end[queries] for end in ends)
        start = torch.where(filled, low, length).amin(1, keepdim=True)
        keys = start + torch.arange(width, device=device) * step
        seen = (keys[:, None] >= low[..., None]) & (keys[:, None] <= high[..., None]) | ~filled[..., None]
        parts.append((torch.where(filled, queries, length), keys.clamp(max=residue + (len(places) - 1) * step), seen))
    queries, keys, seen = (torch.cat(of_residues) for of_residues in zip(*parts, strict=True))
    return queries, keys, seen


def _cut(cells: Tensor, index: Sequence[Tensor]) -> Tensor:
    """The entries of ``cells (*sizes)`` in every tile, ``(tiles, T)``, from the coordinates ``(tiles, side)`` along each axis."""
    for axis, places in enumerate(index):
        cells = cells.index_select(2 * axis, places.flatten()).unflatten(2 * axis, places.shape)
    rank = len(index)
    cells = cells.permute(*range(0, 2 * rank, 2), *range(1, 2 * rank, 2))
    return cells.flatten(rank).flatten(0, rank - 1)


def _gathered(q: Tensor, k: Tensor, v: Tensor, grid: Grid, windows: tuple[AxisWindows, ...], shared: int, call: AttentionCall) -> Tensor:
    """:func:`halo_attention` in operations of every runtime. Keys are gathered by index, and one fused call runs all tiles."""
    bias, (batch, heads), device = call.term.grid_bias, q.shape[:2], q.device
    queries, keys, seen, slots = _halo_tiles(grid, windows, device)
    tiles, queries = len(queries), queries.clamp(min=0)
    if shared:
        front = torch.arange(grid.prefix - shared, grid.prefix, device=device)
        keys, seen = torch.cat([front.expand(tiles, -1), keys], 1), F.pad(seen, (shared, 0), value=True)

    def of_tiles(x: Tensor, index: Tensor) -> Tensor:
        """The tokens of every tile, ``(B · tiles, H, T, D)``."""
        return x.index_select(2, index.flatten()).unflatten(2, index.shape).transpose(1, 2).flatten(0, 1)

    mask = seen.expand(batch, -1, -1, -1)
    if call.key_mask is not None:
        mask = mask & call.key_mask.index_select(1, keys.flatten()).view(batch, tiles, 1, -1)
        mask = mask | ~mask.any(-1, keepdim=True)  # padding cells that would see no key see all
    mask = mask.flatten(0, 1)[:, None]
    if bias is not None:
        zero, head = bias.table.new_zeros(()), torch.arange(heads, device=device)[:, None, None]
        term = bias(zero, zero, head, queries[:, None, :, None], keys[:, None, None])
        term = term.to(torch.promote_types(q.dtype, torch.float32)).repeat(batch, 1, 1, 1)
        term = term.masked_fill(~mask, torch.finfo(term.dtype).min)
        mask = term.to(q.dtype) if q.dtype in (torch.float32, torch.float64) else term.clamp(min=torch.finfo(q.dtype).min).to(q.dtype)
    parts = of_tiles(q, queries), of_tiles(k, keys), of_tiles(v, keys)
    out = fused_attention(*parts, attn_mask=mask, dropout_p=call.dropout, scale=call.scale)
    return out.unflatten(0, (batch, tiles)).transpose(1, 2).flatten(2, 3).index_select(2, slots)


def halo_tile(grid: Grid, windows: tuple[AxisWindows, ...], device: torch.device) -> GatherTile:
    """The query-key pairs of the windows, as one tile of positions."""
    queries, keys, seen, _ = _halo_tiles(grid, windows, device)
    return GatherTile(queries[None, None], keys[None, None], bias=seen[None, None])
