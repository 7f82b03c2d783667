"""Building blocks of static patterns: tiles for the gathered engine, and pair counts.

Positions are int64 tables with -1 in empty slots. A tile's row has at most :data:`QUERIES_PER_ROW` queries, or
:data:`QUERIES_PER_WIDE_ROW` if all of them see the same keys. In causal forms, later rows see more keys. The rows are
therefore distributed over at most :data:`MAX_PARTS` tiles, and the last row of a tile determines its number of keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...engines.call import GatherTile, MaskMod, Pattern, rows_of
from ...engines.dense import both

QUERIES_PER_ROW = 128
"""Maximum queries per row of a tile if its queries see different keys. Longer rows would mask more pairs."""
QUERIES_PER_WIDE_ROW = 256
"""Maximum queries per row of a tile if all see the same keys. From 192 on, torch's CPU kernel takes twice as many
queries at a time."""
MAX_PARTS = 8
"""Maximum number of tiles into which :func:`cells` cuts a causal triangle, and :func:`prefixes` its rows."""
QUERIES_PER_BAND_ROW = 64
"""Queries per row of :func:`band_tile`. The row's keys are the positions of its queries and the band on both sides."""


def band_tile(length: int, left: int, right: int, device: torch.device, dilation: int = 1) -> GatherTile:
    """One tile with the pairs at distances (query - key) of ``dilation`` times ``-right … left``.

    Each row has queries of the same residue modulo ``dilation``, which see only keys of that residue.
    """
    # Branches instead of min: torch.compile would keep a min in the shapes, and Inductor fails to divide by it.
    if dilation > length:
        dilation = length
    tokens_per_residue = -(-length // dilation)
    if left >= tokens_per_residue:
        left = tokens_per_residue - 1
    if right >= tokens_per_residue:
        right = tokens_per_residue - 1
    size = QUERIES_PER_BAND_ROW
    if size > tokens_per_residue:
        size = tokens_per_residue
    first = torch.arange(0, tokens_per_residue, size, device=device)[:, None]
    queries = _members(first + torch.arange(size, device=device), dilation, length)
    keys = _members(first + torch.arange(-left, size + right, device=device), dilation, length)
    return GatherTile(queries, keys, inside=(-right * dilation, left * dilation))


def residues(length: int, stride: int, device: torch.device) -> Tensor:
    """Positions grouped by residue modulo ``stride``, ``(stride, ceil(length / stride))``, with -1 in empty slots.

    If the stride is longer than ``length``, each position is a group.
    """
    if stride > length:
        stride = length
    steps = torch.arange(-(-length // stride), device=device)[None]
    return _members(steps, stride, length)[0, 0]


def _members(steps: Tensor, stride: int, length: int) -> Tensor:
    """Positions ``step * stride + residue`` for every residue and row of ``steps (R, T)``, ``(1, 1, stride * R, T)``.

    Positions outside ``0 … length - 1`` are -1.
    """
    positions = steps * stride + torch.arange(stride, device=steps.device)[:, None, None]
    return torch.where((steps >= 0) & (positions < length), positions, -1).flatten(0, 1)[None, None]


def cells(
    queries: Tensor, keys: Tensor, *, causal: bool, outside: tuple[int, int] | None = None
) -> Iterator[GatherTile]:
    """Tiles in which row c of ``queries (C, n)`` sees row c of ``keys (C, m)``. If causal, both rows must end at the
    same position.

    outside: as in :class:`~hf_longattn.engines.call.GatherTile`.
    """
    count, total = queries.shape[1], keys.shape[1]
    size = count  # queries of each row that are in one tile
    if causal:
        size = QUERIES_PER_ROW * -(-count // (QUERIES_PER_ROW * MAX_PARTS))
    for first in range(0, count, size):
        last = min(first + size, count)
        rows = in_rows(queries[:, first:last], QUERIES_PER_ROW if causal else QUERIES_PER_WIDE_ROW)
        seen = keys[:, : total - count + last] if causal else keys
        # Order: piece 0 of every row, then piece 1 of every row, … Neighbouring tile rows are then a constant step
        # apart: one strided view.
        repeated = seen.repeat(rows.shape[1], 1)
        yield GatherTile(
            rows.transpose(0, 1).flatten(0, 1)[None, None], repeated[None, None], causal=causal, outside=outside
        )


def in_rows(cells: Tensor, row: int) -> Tensor:
    """``cells (C, n)`` cut into r pieces of equal size, ``(C, r, ceil(n / r))``, padded with -1. r is the smallest
    number of pieces with at most ``row`` positions each."""
    pieces = -(-cells.shape[1] // row)
    size = -(-cells.shape[1] // pieces)
    return F.pad(cells, (0, pieces * size - cells.shape[1]), value=-1).unflatten(1, (pieces, size))


def in_blocks(x: Tensor, size: int) -> Tensor:
    """``x (B, H, N, D)`` cut into blocks, ``(B, H, ceil(N / size), size, D)``. The last is filled up with zeros."""
    missing = -x.shape[2] % size
    if missing:  # F.pad copies even where it adds nothing
        x = F.pad(x, (0, 0, 0, missing))
    return x.unflatten(2, (-1, size))


def tokens_of(blocks: Tensor, size: int, length: int) -> Tensor:
    """Positions of the tokens of ``blocks (…, K)``, shape ``(…, K·size)``; -1 where there is no block or no token."""
    position = blocks[..., None] * size + torch.arange(size, device=blocks.device)
    return torch.where((blocks[..., None] >= 0) & (position < length), position, -1).flatten(-2)


def prefixes(rows: Tensor, keys: Tensor, seen: Sequence[int]) -> Iterator[GatherTile]:
    """Tiles in which row r of ``rows (R, T)`` sees the first ``seen[r]`` of ``keys (K)``. ``seen`` must not
    decrease."""
    count = len(seen)
    size = count if seen[0] == seen[-1] else -(-count // MAX_PARTS)
    for first in range(0, count, size):
        last = min(first + size, count)
        widest = seen[last - 1]
        if widest == 0:
            continue
        limit = torch.tensor(seen[first:last], device=keys.device)[:, None]
        listed = torch.where(torch.arange(widest, device=keys.device) < limit, keys[:widest], -1)
        yield GatherTile(rows[None, None, first:last], listed[None, None])


def without(part: GatherTile, band: Pattern | None, mods: Sequence[MaskMod], num_heads: int) -> GatherTile:
    """``part``, whose bias must be bool, without the pairs that are in ``band`` or visible by any of ``mods``."""
    mods = list(mods)
    if band is not None:
        low, high = -band.right, band.left
        if part.outside is None:
            part = dataclasses.replace(part, outside=(low, high))
        elif part.outside[0] <= high + 1 and low <= part.outside[1] + 1:  # the two ranges of distances touch
            part = dataclasses.replace(part, outside=(min(low, part.outside[0]), max(high, part.outside[1])))
        else:
            mods.append(band.band_mod)
    if not mods:
        return part
    left_out = _any(mods, part.queries, part.keys, num_heads)
    return dataclasses.replace(part, bias=both(part.bias, ~left_out))


def global_parts(
    tokens: Tensor, max_tokens: int, seen: MaskMod, num_heads: int, causal: bool
) -> tuple[GatherTile, ...]:
    """Two tiles: all queries with the global keys, and the global queries with all keys. Pairs that are visible by
    ``seen`` are left out.

    tokens: mask of the global tokens, ``(B, N)`` bool.
    max_tokens: maximum number of global tokens in a batch row.
    """
    length, device = tokens.shape[1], tokens.device
    if max_tokens == 0:
        return ()
    index = tokens.int().argsort(dim=-1, descending=True, stable=True)[:, :max_tokens]
    chosen = torch.where(tokens.gather(1, index), index, -1)[:, None, None, :]
    queries = rows_of(length, QUERIES_PER_BAND_ROW, device)
    keys = chosen.expand(-1, -1, queries.shape[2], -1)
    all_keys = torch.arange(length, device=device).view(1, 1, 1, -1)
    # the first tile has the pairs with a global key
    only_global_query = ~_any([seen], chosen, all_keys, num_heads) & ~tokens[:, None, None, None, :]
    return (
        GatherTile(queries, keys, causal=causal, bias=~_any([seen], queries, keys, num_heads)),
        GatherTile(chosen, all_keys, causal=causal, bias=only_global_query),
    )


def _any(mods: Sequence[MaskMod], queries: Tensor, keys: Tensor, num_heads: int) -> Tensor:
    """Whether a pair is visible by any of ``mods``, ``(B or 1, H or 1, R, Tq, Tk)``; arbitrary for empty slots."""
    b = torch.zeros(1, 1, 1, 1, 1, dtype=torch.long, device=queries.device)
    h = torch.arange(num_heads, device=queries.device).view(1, -1, 1, 1, 1)
    q_idx, kv_idx = queries.clamp(min=0)[..., :, None], keys.clamp(min=0)[..., None, :]
    seen = mods[0](b, h, q_idx, kv_idx)
    for mod in mods[1:]:
        seen = seen | mod(b, h, q_idx, kv_idx)
    return seen


def full_pairs(length: int, causal: bool) -> int:
    """Number of pairs of full attention among ``length`` tokens: all of them, or those with ``key <= query``."""
    return length * (length + 1) // 2 if causal else length * length


def band_pairs(length: int, left: int, right: int) -> int:
    """Number of pairs with ``-right <= query - key <= left``."""
    pairs = length
    for side in (min(left, length - 1), min(right, length - 1)):
        pairs += side * (side + 1) // 2 + (length - 1 - side) * side  # Σ_i min(i, side) beside the diagonal
    return pairs


def block_sizes(length: int, size: int) -> list[int]:
    """Number of tokens in each block; the last block may be shorter."""
    return [min(size, length - first) for first in range(0, length, size)]
