"""Building blocks of static patterns: rows of queries and keys for the gathered engine.

Positions stand in int64 tables whose empty slots are -1. Rows have at most :data:`ROW` queries, or :data:`WIDE_ROW` where all see the
same keys; where queries see a growing number of keys (the causal forms), rows are grouped into at most :data:`STEPS` parts, each as wide
as its last row needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines.pattern import GatherTile

ROW = 128
"""Queries per row, at most, where what they see differs: wider rows would be masked for longer."""
WIDE_ROW = 256
"""Queries per row, at most, where all see the same: the kernel takes twice as many queries at a time from 192 on."""
STEPS = 8
"""Parts of different width into which a triangle of pairs is cut, at most."""
BAND_ROW = 64
"""Queries per row of a band: its keys are the row and both sides."""


def band(length: int, left: int, right: int, device: torch.device, dilation: int = 1) -> GatherTile:
    """Pairs at distances ``-right … left`` times ``dilation``: in every residue class of positions, a plain band."""
    members = -(-length // dilation)
    left, right = min(left, members - 1), min(right, members - 1)
    size = min(BAND_ROW, members)
    first = torch.arange(0, members, size, device=device)[:, None]
    queries = _members(first + torch.arange(size, device=device), dilation, length)
    keys = _members(first + torch.arange(-left, size + right, device=device), dilation, length)
    return GatherTile(queries, keys, inside=(-right * dilation, left * dilation))


def residues(length: int, stride: int, device: torch.device) -> Tensor:
    """Positions by their residue, ``(stride, ceil(length / stride))``."""
    steps = torch.arange(-(-length // stride), device=device)[None]
    return _members(steps, stride, length)[0, 0]


def _members(steps: Tensor, stride: int, length: int) -> Tensor:
    """Positions ``step * stride + residue`` for every residue and row of ``steps (R, T)``: ``(1, 1, stride * R, T)``."""
    places = steps * stride + torch.arange(stride, device=steps.device)[:, None, None]
    return torch.where((steps >= 0) & (places < length), places, -1).flatten(0, 1)[None, None]


def cells(queries: Tensor, keys: Tensor, *, causal: bool, outside: tuple[int, int] | None = None) -> Iterator[GatherTile]:
    """Queries ``(C, n)`` of each cell with the keys ``(C, m)`` of the same cell. When causal, queries and keys end together."""
    count, total = queries.shape[1], keys.shape[1]
    size = ROW * -(-count // (ROW * STEPS)) if causal else count
    for first in range(0, count, size):
        last = min(first + size, count)
        rows = in_rows(queries[:, first:last], ROW if causal else WIDE_ROW)
        seen = keys[:, : total - count + last] if causal else keys
        # The first rows of all cells, then their second rows …: neighbours are as far apart as the cells.
        repeated = seen.repeat(rows.shape[1], 1)
        yield GatherTile(rows.transpose(0, 1).flatten(0, 1)[None, None], repeated[None, None], causal=causal, outside=outside)


def in_rows(cells: Tensor, row: int) -> Tensor:
    """Cells ``(C, n)`` cut into r equal rows of at most ``row``, ``(C, r, n / r)``."""
    pieces = -(-cells.shape[1] // row)
    size = -(-cells.shape[1] // pieces)
    return F.pad(cells, (0, pieces * size - cells.shape[1]), value=-1).unflatten(1, (pieces, size))


def without_gaps(index: Tensor) -> Tensor:
    """Rows of ``index (…, T)`` with the empty slots behind the listed positions, and no more slots than the longest row needs.

    What a row needs is read from the values; while PyTorch compiles, when nothing can be read, the rows stay as they are.
    """
    if torch.compiler.is_compiling():
        return index
    order = (index < 0).sort(dim=-1, stable=True)
    return index.gather(-1, order.indices)[..., : int((index >= 0).sum(-1).max())]


def joined(*lists: Tensor) -> Tensor:
    """Lists ``(B or 1, H or 1, R, K)`` one after the other."""
    batch, heads = (max(x.shape[axis] for x in lists) for axis in (0, 1))
    return torch.cat([x.expand(batch, heads, -1, -1) for x in lists], -1)


def prefixes(
    rows: Tensor, keys: Tensor, seen: Sequence[int], *, causal: bool = False, outside: tuple[int, int] | None = None
) -> Iterator[GatherTile]:
    """Row r of ``rows (R, T)`` sees the first ``seen[r]`` of ``keys (K)``, which never falls from row to row."""
    count = len(seen)
    size = count if seen[0] == seen[-1] else -(-count // STEPS)
    for first in range(0, count, size):
        last = min(first + size, count)
        widest = seen[last - 1]
        if widest == 0:
            continue
        limit = torch.tensor(seen[first:last], device=keys.device)[:, None]
        listed = torch.where(torch.arange(widest, device=keys.device) < limit, keys[:widest], -1)
        yield GatherTile(rows[None, None, first:last], listed[None, None], causal=causal, outside=outside)
