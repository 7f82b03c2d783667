"""The lines engine: softmax attention of cells to their lines along several axes of a grid, on every device and in exported graphs.

The scores of a line along each axis are one product for all lines, and one softmax is over the lines of a cell: N times their lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .common.call import AttentionCall
from .common.dense import products, same_dtype
from .common.grid import Grid
from .common.grid_bias import GridBias


def line_attention(q: Tensor, k: Tensor, v: Tensor, grid: Grid, axes: Sequence[int], shared: int, call: AttentionCall) -> Tensor:
    """Softmax attention of the cells of a grid, each to the cells of its lines, itself once, and to the prefix tokens that all see.

    Args:
        q, k, v: ``(B, H, N, D)`` of the grid's tokens; the queries of its prefix are left to the caller.
        axes: along which the lines run.
        shared: prefix tokens, the last ones, that every cell sees: 0, or all.
        call: its padding mask, scale and dropout, and a :class:`GridBias`.
    Returns:
        The output of the cells, ``(B, H, cells, D)``; that of padding is finite and means nothing.
    """
    q, k, v = same_dtype(q, k, v)
    bias = call.score_mod if isinstance(call.score_mod, GridBias) else None
    scale, real = call.scale_for(q.shape[-1]), call.key_mask
    queries, keys, values = (x[:, :, grid.prefix :].unflatten(2, grid.sizes) for x in (q, k, v))
    parts = []
    for number, axis in enumerate(axes):
        scores = products(queries.movedim(2 + axis, -2), keys.movedim(2 + axis, -2)) * scale  # (B, H, *others, n, n)
        if bias is not None:
            scores = scores + _line_bias(bias, grid, axis)
        lowest, size = torch.finfo(scores.dtype).min, grid.sizes[axis]
        if number:  # the first line has the cell itself
            scores = scores.masked_fill(torch.eye(size, dtype=torch.bool, device=q.device), lowest)
        if real is not None:
            seen = real[:, None, grid.prefix :].unflatten(2, grid.sizes).movedim(2 + axis, -1)[..., None, :]
            scores = scores.masked_fill(~seen, lowest)
        parts.append(scores.movedim(-2, 2 + axis))
    front = slice(grid.prefix - shared, grid.prefix)
    if shared:
        scores = products(q[:, :, grid.prefix :], k[:, :, front]) * scale
        of_shared = None if bias is None else bias.of_pairs(1)
        if of_shared is not None:
            scores = scores + of_shared[None, :, None, None]
        if real is not None:
            scores = scores.masked_fill(~real[:, None, None, front], torch.finfo(scores.dtype).min)
        parts.append(scores.unflatten(2, grid.sizes))
    weights = F.dropout(torch.cat(parts, -1).softmax(-1), call.dropout).to(v.dtype).split([part.shape[-1] for part in parts], -1)
    out = torch.zeros_like(values)
    for axis, weight in zip(axes, weights, strict=False):
        out = out + (weight.movedim(2 + axis, -2) @ values.movedim(2 + axis, -2)).movedim(-2, 2 + axis)
    if shared:
        out = out + (weights[-1].flatten(2, 1 + grid.rank) @ v[:, :, front]).unflatten(2, grid.sizes)
    return out.flatten(2, 1 + grid.rank)


def _line_bias(bias: GridBias, grid: Grid, axis: int) -> Tensor:
    """The bias of the pairs of a line, ``(H, …, n, n)`` with an axis for each axis of the grid other than the line's."""
    places = torch.arange(grid.sizes[axis])
    nothing = torch.zeros((), dtype=torch.long)
    distances = [places[:, None] - places if number == axis else nothing for number in range(grid.rank)]
    term = bias.over(bias.entries(distances))
    return term.view(len(term), *(1,) * (grid.rank - 1), *term.shape[1:])
