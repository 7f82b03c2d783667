"""The lines engine: grid cells attend to the lines through them, such as row and column. It runs on every device, also exported.

One product computes the scores of all lines along an axis. A cell has one softmax over all its lines. The cost is N times their length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .common.axis_tiles import window_bias
from .common.call import AttentionCall, DispatchContext
from .common.dense import products, same_dtype
from .common.grid import Grid
from .common.score_terms import NO_GRID_BIAS
from .cpu.flash import why_not_tiles


def why_not(context: DispatchContext) -> str | None:
    """Why this engine does not run, as a clause. ``None`` if it may run."""
    if not torch.compiler.is_exporting() and why_not_tiles(context) is None:
        return "the fused kernel runs the listed pairs"
    return None if "lines" in context.call.term.engines else NO_GRID_BIAS


def line_attention(q: Tensor, k: Tensor, v: Tensor, grid: Grid, axes: Sequence[int], shared: int, call: AttentionCall) -> Tensor:
    """Softmax attention of grid cells over their lines and the shared prefix tokens. A cell sees itself once.

    Args:
        q, k, v: ``(B, H, N, D)`` of the grid's tokens. The caller computes the output of prefix tokens.
        axes: the axes along which lines run.
        shared: number of prefix tokens that every cell sees, either 0 or all of them.
        call: gives padding mask, scale and dropout, and a :class:`GridBias` if any.
    Returns:
        The output of the cells, ``(B, H, cells, D)``. Outputs at padding are finite but meaningless.
    """
    q, k, v = same_dtype(q, k, v)
    bias = call.term.grid_bias
    scale, real = call.scale_for(q.shape[-1]), call.key_mask
    queries, keys, values = (x[:, :, grid.prefix :].unflatten(2, grid.sizes) for x in (q, k, v))
    parts = []
    for number, axis in enumerate(axes):
        scores = products(queries.movedim(2 + axis, -2), keys.movedim(2 + axis, -2)) * scale  # (B, H, *others, n, n)
        if bias is not None:
            term = window_bias(bias, [size if number == axis else 1 for number, size in enumerate(grid.sizes)])[0]
            scores = scores + term.view(len(term), *(1,) * (grid.rank - 1), *term.shape[1:])
        lowest, size = torch.finfo(scores.dtype).min, grid.sizes[axis]
        if number:  # the cell itself counts in its first line
            scores = scores.masked_fill(torch.eye(size, dtype=torch.bool, device=q.device), lowest)
        if real is not None:
            seen = real[:, None, grid.prefix :].unflatten(2, grid.sizes).movedim(2 + axis, -1)[..., None, :]
            scores = scores.masked_fill(~seen, lowest)
        parts.append(scores.movedim(-2, 2 + axis))
    front = slice(grid.prefix - shared, grid.prefix)
    if shared:
        scores = products(q[:, :, grid.prefix :], k[:, :, front]) * scale
        of_shared = None if bias is None else bias.to_prefix
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
