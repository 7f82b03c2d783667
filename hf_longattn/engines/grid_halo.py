"""The halo engine: softmax attention of grid cells over overlapping windows. A window is a range of coordinates on each axis.

Queries run in tiles. The keys of a tile are its cells and a halo around them. On a CPU, :mod:`.cpu.grid_halo` runs the tiles. Elsewhere,
and in exported graphs, the keys of all tiles are gathered by index. One fused call with a mask then runs all tiles. Time and memory are
linear: the number of cells times the keys of a tile.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .common.axis_tiles import AxisWindows, TileGroup, axis_tiles, tile_seen
from .common.byte_cache import BYTE_CACHE
from .common.call import AttentionCall, DispatchContext, GatherTile
from .common.dense import fused_attention, same_dtype
from .common.grid import Grid
from .common.paths import PathName
from .common.score_terms import NO_GRID_BIAS
from .cpu.grid_halo import halo_numbers
from .cpu.softmax import attend_parts

GATHERED_QUERIES = 64
"""Target queries per tile with gathered keys. Tile sides are rounded to whole cells."""


def why_not(context: DispatchContext) -> str | None:
    """Why this engine does not run, as a clause. ``None`` if it may run."""
    return None if "halo" in context.call.term.engines else NO_GRID_BIAS


def halo_attention(
    path: PathName, q: Tensor, k: Tensor, v: Tensor, grid: Grid, windows: tuple[AxisWindows, ...], shared: int, call: AttentionCall
) -> Tensor:
    """Softmax attention of grid cells over their windows and the shared prefix tokens.

    Args:
        path: ``"cpu-halo"`` or ``"halo"``, as the dispatcher chose.
        q, k, v: ``(B, H, N, D)`` of the grid's tokens. The caller computes the output of prefix tokens.
        windows: the coordinates that cells see along each axis.
        shared: number of prefix tokens that every cell sees, either 0 or all of them.
        call: gives padding mask, scale and dropout, and a :class:`GridBias` if any.
    Returns:
        The output of the cells, ``(B, H, cells, D)``. Outputs at padding are finite but meaningless.
    """
    q, k, v = same_dtype(q, k, v)
    bias = call.term.grid_bias
    if path == "cpu-halo":
        learned, numbers = [] if bias is None else [bias.table], halo_numbers(grid, windows, shared, bias)
        return attend_parts("halo", q, k, v, call.scale_for(q.shape[-1]), learned, [call.key_mask], numbers)
    return _gathered(q, k, v, grid, windows, shared, call)


class _HaloTiles(NamedTuple):
    """Tiles of equal size. Every cell is a query in exactly one tile. Queries and keys are token positions."""

    queries: Tensor
    """``(tiles, T)``, -1 for an empty slot."""
    keys: Tensor
    """``(tiles, keys)``. Slots that no query of the tile sees hold an arbitrary position."""
    seen: Tensor
    """``(tiles, T, keys)`` bool. Empty query slots see every key, since an empty softmax is NaN."""
    slots: Tensor
    """``(cells,)``, the slot of every cell in the flattened ``queries``."""


def _halo_tiles(grid: Grid, windows: tuple[AxisWindows, ...], device: torch.device) -> _HaloTiles:
    """The tiles of a grid, cached."""

    def make() -> _HaloTiles:
        axes = [_equal_tiles(_groups(axis, device, grid.rank), len(axis.low)) for axis in windows]
        cells = torch.arange(grid.prefix, grid.length, device=device).view(grid.sizes)
        with_end = F.pad(cells, (0, 1) * grid.rank, value=-1)
        queries, keys = _cut(with_end, [of_queries for of_queries, _, _ in axes]), _cut(cells, [of_keys for _, of_keys, _ in axes])
        places = torch.where(queries < 0, grid.length, queries).flatten()
        slots = places.new_zeros(grid.length + 1).scatter(0, places, torch.arange(len(places), device=device))
        return _HaloTiles(queries, keys, tile_seen([seen for _, _, seen in axes]), slots[grid.prefix : grid.length])

    return BYTE_CACHE.get(("halo tiles", grid, windows, device), make)


def _groups(windows: AxisWindows, device: torch.device, rank: int) -> list[tuple[Tensor, Tensor, TileGroup]]:
    """Groups of tiles along one of ``rank`` axes, with coordinates of queries ``(tiles, size)`` and of keys ``(tiles, key_size)``."""
    side, groups = min(len(windows.low), round(GATHERED_QUERIES ** (1 / rank))), []
    for group in axis_tiles(windows, side):
        first = torch.arange(group.tiles, device=device)[:, None] * group.size
        queries = group.residue + group.step * (group.first + first + torch.arange(group.size, device=device))
        keys = group.residue + group.step * (group.key_first + first + torch.arange(group.key_size, device=device))
        groups.append((queries, keys, group))
    return groups


def _equal_tiles(groups: Sequence[tuple[Tensor, Tensor, TileGroup]], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Join all groups of tiles along an axis of ``length`` cells, padded to equal sizes.

    Returns:
        Query coordinates ``(tiles, side)``, padded with ``length``; key coordinates ``(tiles, width)``, padded with 0; and which keys each
        query sees, ``(tiles, side, width)`` bool, True in slots without a query.
    """
    side, width = max(group.size for _, _, group in groups), max(group.key_size for _, _, group in groups)
    parts = []
    for queries, keys, group in groups:
        missing, missing_keys = side - group.size, width - group.key_size
        seen = F.pad(F.pad(group.seen_by_queries(), (0, missing_keys), value=False), (0, 0, 0, missing), value=True)
        of_tiles = seen.to(keys.device).expand(group.tiles, -1, -1)
        parts.append((F.pad(queries, (0, missing), value=length), F.pad(keys, (0, missing_keys)), of_tiles))
    queries, keys, seen = (torch.cat(of_groups) for of_groups in zip(*parts, strict=True))
    return queries, keys, seen


def _cut(cells: Tensor, index: Sequence[Tensor]) -> Tensor:
    """Entries of ``cells (*sizes)`` in every tile, ``(tiles, T)``. ``index`` has the coordinates ``(tiles, side)`` along each axis."""
    for axis, places in enumerate(index):
        cells = cells.index_select(2 * axis, places.flatten()).unflatten(2 * axis, places.shape)
    rank = len(index)
    cells = cells.permute(*range(0, 2 * rank, 2), *range(1, 2 * rank, 2))
    return cells.flatten(rank).flatten(0, rank - 1)


def _gathered(q: Tensor, k: Tensor, v: Tensor, grid: Grid, windows: tuple[AxisWindows, ...], shared: int, call: AttentionCall) -> Tensor:
    """:func:`halo_attention` in operations that every runtime has. Keys are gathered by index, and one fused call runs all tiles."""
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
        mask = mask | ~mask.any(-1, keepdim=True)  # padding cells without a visible key see all keys
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


def halo_tiles(grid: Grid, windows: tuple[AxisWindows, ...], device: torch.device) -> tuple[GatherTile, ...]:
    """The query-key pairs of the windows. A GatherTile combines one tile group per axis. Its rows are all combinations of tiles."""
    cells, tiles = torch.arange(grid.prefix, grid.length, device=device).view(grid.sizes), []
    for groups in itertools.product(*(_groups(axis, device, grid.rank) for axis in windows)):
        indices = [of_queries for of_queries, _, _ in groups], [of_keys for _, of_keys, _ in groups]
        queries, keys = (_cut(cells, index)[None, None] for index in indices)
        bias = None
        if any(group.seen for _, _, group in groups):
            bias = tile_seen([group.seen_by_queries()[None] for _, _, group in groups])[None, None].to(device)
        tiles.append(GatherTile(queries, keys, bias=bias))
    return tuple(tiles)
