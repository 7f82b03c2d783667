"""The windows engine: softmax attention inside windows of a grid that do not overlap, on every device, compiled and exported alike.

A grid is cut along every axis into windows, with partial ones at its borders. Windows of equal size are one fused call over
``(B · windows, H, tokens, D)``: at most 3 calls along an axis (first partial, whole, last partial), so 9 on a picture, without any mask.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .common.call import AttentionCall
from .common.dense import fused_attention
from .common.grid import Grid
from .common.grid_bias import GridBias, tile_distances


class Stretch(NamedTuple):
    """``windows`` windows of ``size`` cells along an axis, from cell ``first`` on."""

    first: int
    windows: int
    size: int

    @property
    def cells(self) -> slice:
        return slice(self.first, self.first + self.windows * self.size)


def stretches(cells: int, window: int, shift: int) -> list[Stretch]:
    """The windows of an axis of ``cells``: those that ``(cell + shift) // window`` numbers, equal ones together."""
    first = min(cells, -shift % window)
    parts = [Stretch(0, 1, first)] if first else []
    windows, rest = divmod(cells - first, window)
    if windows:
        parts.append(Stretch(first, windows, window))
    if rest:
        parts.append(Stretch(cells - rest, 1, rest))
    return parts


def regions(grid: Grid, window: Sequence[int], shift: Sequence[int]) -> Iterator[tuple[Stretch, ...]]:
    """Parts of the grid whose windows are equal, with a stretch on every axis."""
    yield from itertools.product(*(stretches(*axis) for axis in zip(grid.sizes, window, shift, strict=True)))


def padded(x: Tensor, grid: Grid, larger: Grid, row: Tensor) -> Tensor:
    """``x (B, H, N, D)`` on a grid with ``row (H, D)`` at the further cells, after the last ones of every axis, of a ``larger`` one."""
    cells = x[:, :, grid.prefix :].unflatten(2, grid.sizes)
    for axis, (size, wanted) in enumerate(zip(grid.sizes, larger.sizes, strict=True), 2):
        if wanted > size:
            shape = [*cells.shape[:axis], wanted - size, *cells.shape[axis + 1 :]]
            filler = row.to(x.dtype).view(1, row.shape[0], *(1 for _ in grid.sizes), row.shape[1])
            cells = torch.cat([cells, filler.expand(shape)], axis)
    cells = cells.flatten(2, 1 + grid.rank)
    return torch.cat([x[:, :, : grid.prefix], cells], 2) if grid.prefix else cells


def cropped(x: Tensor, grid: Grid, larger: Grid) -> Tensor:
    """The rows of ``x (B, H, N, D)`` on a ``larger`` grid that belong to ``grid``: what :func:`padded` was given."""
    cells = x[:, :, grid.prefix :].unflatten(2, larger.sizes)
    for axis, size in enumerate(grid.sizes, 2):
        cells = cells.narrow(axis, 0, size)
    cells = cells.flatten(2, 1 + grid.rank)
    return torch.cat([x[:, :, : grid.prefix], cells], 2) if grid.prefix else cells


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Grid,
    window: Sequence[int],
    shift: Sequence[int],
    shared: int,
    call: AttentionCall,
    of_prefix: Tensor | None = None,
) -> Tensor:
    """Softmax attention of the cells of a grid, each to the cells of its window and to the prefix tokens that all see.

    Args:
        q, k, v: ``(B, H, N, D)`` of the grid's tokens.
        window, shift: cells along each axis; windows are numbered by ``(cell + shift) // window``.
        shared: prefix tokens, the last ones, that every cell sees: 0, or all.
        call: its scale and dropout, and a :class:`GridBias`.
        of_prefix: the output of the prefix tokens, ``(B, H, prefix, D)``, where there are any.
    Returns:
        ``(B, H, N, D)``, stored token-major, so that merging the heads is free.
    """
    prefix = None
    if shared:
        prefix = k[:, :, grid.prefix - shared : grid.prefix], v[:, :, grid.prefix - shared : grid.prefix]
    axes = [stretches(*axis) for axis in zip(grid.sizes, window, shift, strict=True)]
    cut = zip(*(_cut(x[:, :, grid.prefix :].unflatten(2, grid.sizes), axes) for x in (q, k, v)), strict=True)
    outs = {region: _region(part, region, prefix, call) for region, part in zip(itertools.product(*axes), cut, strict=True)}
    cells = _assembled(outs, (), grid.rank).flatten(1, grid.rank)
    return (cells if of_prefix is None else torch.cat([of_prefix.transpose(1, 2), cells], 1)).transpose(1, 2)


def _cut(x: Tensor, axes: Sequence[Sequence[Stretch]]) -> list[Tensor]:
    """``x (B, H, *cells, D)`` in parts, one for each region; by splits, whose gradients are joined once instead of added up as slices."""
    parts = [x]
    for axis, along in enumerate(axes):
        sizes = [stretch.windows * stretch.size for stretch in along]
        parts = [piece for part in parts for piece in (part.split(sizes, 2 + axis) if len(sizes) > 1 else (part,))]
    return parts


def _region(tensors: Sequence[Tensor], region: Sequence[Stretch], prefix: tuple[Tensor, Tensor] | None, call: AttentionCall) -> Tensor:
    """The output of the windows of a region for its part of q, k and v, ``(B, *cells, H, D)``."""
    rank, batch, heads, width = len(region), *tensors[0].shape[:2], tensors[0].shape[-1]
    counts, sizes = [stretch.windows for stretch in region], [stretch.size for stretch in region]
    windows, tokens = math.prod(counts), math.prod(sizes)
    inner = [number for pair in zip(counts, sizes, strict=True) for number in pair]
    numbers, inside = range(2, 2 + 2 * rank, 2), range(3, 3 + 2 * rank, 2)

    def in_windows(x: Tensor) -> Tensor:
        x = x.reshape(batch, x.shape[1], *inner, width).permute(0, *numbers, 1, *inside, 2 + 2 * rank)
        return x.reshape(batch * windows, -1, tokens, width)

    q, k, v = (in_windows(x) for x in tensors)
    if prefix is not None:
        k, v = (torch.cat([shared.repeat_interleave(windows, 0), x], 2) for shared, x in zip(prefix, (k, v), strict=True))
    out = fused_attention(q, k, v, attn_mask=_bias(call, sizes, prefix, q), dropout_p=call.dropout, scale=call.scale)
    out = out.reshape(batch, *counts, heads, *sizes, width)
    axes = [axis for pair in zip(range(1, 1 + rank), range(2 + rank, 2 + 2 * rank), strict=True) for axis in pair]
    out = out.permute(0, *axes, 1 + rank, 2 + 2 * rank)
    return out.reshape(batch, *(stretch.windows * stretch.size for stretch in region), heads, width)


def _bias(call: AttentionCall, sizes: Sequence[int], prefix: tuple[Tensor, Tensor] | None, q: Tensor) -> Tensor | None:
    """The bias of all windows of these sizes, ``(windows, H, tokens, prefix + tokens)``; ``None`` without one."""
    if not isinstance(call.score_mod, GridBias):
        return None
    bias = call.score_mod
    entries = bias.entries(tile_distances(sizes, sizes, (0,) * len(sizes), (1,) * len(sizes)))
    term = bias.over(entries.reshape(q.shape[2], q.shape[2]))[None]
    term = bias.with_prefix(term, 0 if prefix is None else prefix[0].shape[2])
    return term.to(q.dtype).expand(q.shape[0], -1, -1, -1)


def _assembled(outs: dict[tuple[Stretch, ...], Tensor], fixed: tuple[Stretch, ...], rank: int) -> Tensor:
    """The outputs of the regions, joined along every axis."""
    if len(fixed) == rank:
        return outs[fixed]
    following = dict.fromkeys(region[len(fixed)] for region in outs if region[: len(fixed)] == fixed)
    parts = [_assembled(outs, (*fixed, stretch), rank) for stretch in following]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1 + len(fixed))
