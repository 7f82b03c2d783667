"""The windows engine: softmax attention inside non-overlapping windows of a grid. It runs on every device, compiled
and exported.

Each axis is cut into windows, with partial windows at the borders. Windows of equal size are one fused call without a
mask, over ``(B · windows, H, tokens, D)``. An axis has at most three sizes (first partial, whole, last partial), so an
image takes at most 9 calls. On a CPU, calls without gradients are split further (:data:`CALL_BYTES`). A key mask is
cut like the keys.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .batch import differentiated, in_graph
from .call import AttentionCall, DispatchContext
from .dense import fused_attention
from .score_terms import PREFIX_PAIRS, GridBias
from .token_grid import Grid

CALL_BYTES = 4 << 20
"""Maximum bytes of q copied per call, on a CPU without gradients. k and v take as many bytes each."""


def why_not(context: DispatchContext) -> str | None:
    """Why this engine does not run, as a clause. ``None`` if it may run."""
    if "windows" in context.call.term.engines:
        return None
    return "a score term other than a bias by distance on the grid needs a mask over all pairs"


class WindowRun(NamedTuple):
    """``windows`` windows of ``size`` cells along an axis, from cell ``first`` on."""

    first: int
    windows: int
    size: int

    @property
    def cells(self) -> slice:
        return slice(self.first, self.first + self.windows * self.size)


def window_runs(cells: int, window: int, shift: int) -> list[WindowRun]:
    """The windows of an axis of ``cells`` cells, numbered by ``(cell + shift) // window``. Equal windows form one
    run."""
    first = -shift % window
    first = first if first < cells else cells
    parts = [WindowRun(0, 1, first)] if first else []
    # no divmod, which graphs with symbolic sizes lack
    windows, rest = (cells - first) // window, (cells - first) % window
    if windows:
        parts.append(WindowRun(first, windows, window))
    if rest:
        parts.append(WindowRun(cells - rest, 1, rest))
    return parts


def regions(grid: Grid, window: Sequence[int], shift: Sequence[int]) -> Iterator[tuple[WindowRun, ...]]:
    """The regions of the grid, each with windows of equal size, as one run per axis."""
    yield from itertools.product(*(window_runs(*axis) for axis in zip(grid.sizes, window, shift, strict=True)))


def padded(x: Tensor, grid: Grid, larger: Grid, row: Tensor) -> Tensor:
    """Extend ``x (B, H, N, D)`` from ``grid`` to a ``larger`` grid. New cells, at the end of every axis, hold
    ``row (H, D)``."""
    cells = x[:, :, grid.prefix :].unflatten(2, grid.sizes)
    for axis, (size, wanted) in enumerate(zip(grid.sizes, larger.sizes, strict=True), 2):
        if wanted > size:
            shape = [*cells.shape[:axis], wanted - size, *cells.shape[axis + 1 :]]
            filler = row.to(x.dtype).view(1, row.shape[0], *(1 for _ in grid.sizes), row.shape[1])
            cells = torch.cat([cells, filler.expand(shape)], axis)
    cells = cells.flatten(2, 1 + grid.rank)
    return torch.cat([x[:, :, : grid.prefix], cells], 2) if grid.prefix else cells


def cropped(x: Tensor, grid: Grid, larger: Grid) -> Tensor:
    """The cells of ``grid``, ``(B, H, n, D)``, of ``x (B, H, N, D)`` on a ``larger`` grid; see :func:`padded`."""
    cells = x[:, :, grid.prefix :].unflatten(2, larger.sizes)
    for axis, size in enumerate(grid.sizes, 2):
        cells = cells.narrow(axis, 0, size)
    return cells.flatten(2, 1 + grid.rank)


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
    """Softmax attention of grid cells over their windows and the shared prefix tokens.

    Args:
        q, k, v: ``(B, H, N, D)`` of the grid's tokens.
        window, shift: cells along each axis; windows are numbered by ``(cell + shift) // window``.
        shared: number of prefix tokens that every cell sees, either 0 or all of them.
        call: gives scale, dropout and key mask, and a score term of the grid if any.
        of_prefix: the output of the prefix tokens, ``(B, H, prefix, D)``, if there are any.
    Returns:
        ``(B, H, N, D)``, stored token-major, so that merging the heads is free. Cells that see no key are zeros.
    """
    keyed = [k, v] if call.key_mask is None else [k, v, call.key_mask[:, None, :, None]]
    prefix = [x[:, :, : grid.prefix] for x in keyed] if shared else None
    axes = [window_runs(*axis) for axis in zip(grid.sizes, window, shift, strict=True)]
    tensors = [x[:, :, grid.prefix :].unflatten(2, grid.sizes) for x in (q, *keyed)]
    recorded = differentiated(q, k, v) or (call.score_mod is not None and torch.is_grad_enabled())
    if q.device.type == "cpu" and not recorded and not in_graph():
        return _in_place(tensors, axes, prefix, call, of_prefix)
    cut = zip(*(_cut(x, axes) for x in tensors), strict=True)
    outs = []  # one per region, (B, *cells, H, D); regions next to each other on the last axis follow one another
    for region, part in zip(itertools.product(*axes), cut, strict=True):
        out = _region(part, region, prefix, call, _bias(call, region, prefix), recorded=True)
        outs.append(out.reshape(out.shape[0], *(run.windows * run.size for run in region), *out.shape[-2:]))
    for axis, runs in reversed([*enumerate(axes, 1)]):  # join along the last axis, then along the one before it
        if (count := len(runs)) > 1:
            outs = [torch.cat(outs[at : at + count], axis) for at in range(0, len(outs), count)]
    cells = outs[0].flatten(1, grid.rank)
    return (cells if of_prefix is None else torch.cat([of_prefix.transpose(1, 2), cells], 1)).transpose(1, 2)


def _in_place(
    tensors: Sequence[Tensor],
    axes: Sequence[Sequence[WindowRun]],
    prefix: Sequence[Tensor] | None,
    call: AttentionCall,
    of_prefix: Tensor | None,
) -> Tensor:
    """The output ``(B, H, N, D)``, computed a few windows at a time, so that the copies fit into the CPU cache and
    share memory. ``tensors`` are q, k and v, ``(B, H, *cells, D)``, and the key mask ``(B, 1, *cells, 1)``, if any."""
    q = tensors[0]
    front = 0 if of_prefix is None else of_prefix.shape[2]
    sizes = q.shape[2:-1]
    out: Any = None
    for region in itertools.product(*axes):
        bias = _bias(call, region, prefix)
        for part in _few_windows(region, q.nbytes // math.prod(sizes)):
            cells = [run.cells for run in part]
            where = (slice(None), slice(None), *cells)
            of_part = _region([x[where] for x in tensors], part, prefix, call, bias, recorded=False)
            if out is None:  # in the dtype of the result, which autocast may change
                out = of_part.new_empty(len(q), front + math.prod(sizes), q.shape[1], q.shape[-1])
            target = out[:, front:].unflatten(1, sizes)[where[1:]]
            for axis, run in reversed([*enumerate(part, 1)]):
                target = target.unflatten(axis, (run.windows, run.size))
            target.copy_(of_part)
    if of_prefix is not None:
        out[:, :front] = of_prefix.transpose(1, 2)
    return out.transpose(1, 2)


def _few_windows(region: Sequence[WindowRun], cell_bytes: int) -> Iterator[tuple[WindowRun, ...]]:
    """Cut ``region`` into parts of at most :data:`CALL_BYTES`, but at least one window. Parts extend along the last
    axis first."""
    most = CALL_BYTES // (cell_bytes * math.prod(run.size for run in region))
    parts: list[list[WindowRun]] = []
    for run in reversed(region):
        first, windows, size = run
        step = min(windows, max(1, most))
        parts.insert(
            0, [WindowRun(first + at * size, min(step, windows - at), size) for at in range(0, windows, step)]
        )
        most //= windows
    yield from itertools.product(*parts)


def _cut(x: Tensor, axes: Sequence[Sequence[WindowRun]]) -> list[Tensor]:
    """Split ``x (B, H, *cells, D)`` into one part per region. Its backward pass concatenates gradients; slices would
    sum padded ones."""
    parts = [x]
    for axis, along in enumerate(axes):
        sizes = [run.windows * run.size for run in along]
        parts = [piece for part in parts for piece in (part.split(sizes, 2 + axis) if len(sizes) > 1 else (part,))]
    return parts


def _region(
    tensors: Sequence[Tensor],
    region: Sequence[WindowRun],
    prefix: Sequence[Tensor] | None,
    call: AttentionCall,
    bias: Tensor | None,
    recorded: bool,
) -> Tensor:
    """The output of a region's windows, ``(B, windows, cells, windows, cells, …, H, D)``. ``tensors``: q, k, v and any
    key mask.
    ``recorded``: whether operations are recorded, for gradients or a graph."""
    rank, batch, heads, width = len(region), *tensors[0].shape[:2], tensors[0].shape[-1]
    counts, sizes = [run.windows for run in region], [run.size for run in region]
    windows, tokens = math.prod(counts), math.prod(sizes)
    inner = [number for pair in zip(counts, sizes, strict=True) for number in pair]
    numbers, inside = range(2, 2 + 2 * rank, 2), range(3, 3 + 2 * rank, 2)

    def in_windows(x: Tensor, shared: Tensor | None = None) -> Tensor:
        rows, features = x.shape[1], x.shape[-1]
        x = x.reshape(batch, rows, *inner, features).permute(0, *numbers, 1, *inside, 2 + 2 * rank)
        if shared is None:
            return x.reshape(batch * windows, rows, tokens, features)
        if recorded:
            # repeat_interleave takes no symbolic count in ONNX
            front = shared.unsqueeze(1).expand(-1, windows, -1, -1, -1).flatten(0, 1)
            return torch.cat([front, x.reshape(batch * windows, rows, tokens, features)], 2)
        for _ in range(rank):
            shared = shared.unsqueeze(1)
        front = shared.expand(-1, *counts, -1, -1, -1)
        joined = x.new_empty(*front.shape[:-2], front.shape[-2] + tokens, features)
        joined[..., : front.shape[-2], :] = front
        joined[..., front.shape[-2] :, :].unflatten(-2, sizes).copy_(x)
        return joined.flatten(0, rank)

    q, *keyed = tensors
    q, (k, v, *key_mask) = in_windows(q), map(in_windows, keyed, [None] * len(keyed) if prefix is None else prefix)
    mask = None if bias is None else bias.to(q.dtype).expand(q.shape[0], -1, -1, -1)
    empty = None
    if key_mask:
        seen = key_mask[0].transpose(2, 3)
        # windows without real keys see every key, since a softmax needs one; their output becomes 0
        empty = ~seen.any(3, keepdim=True)
        term = torch.zeros((), dtype=q.dtype, device=q.device).masked_fill(~(seen | empty), -torch.inf)
        mask = term.expand(-1, -1, tokens, -1) if mask is None else mask + term
    out = fused_attention(q, k, v, attn_mask=mask, dropout_p=call.dropout, scale=call.scale)
    out = out if empty is None else out.masked_fill(empty, 0)
    out = out.reshape(batch, *counts, heads, *sizes, width)
    axes = [axis for pair in zip(range(1, 1 + rank), range(2 + rank, 2 + 2 * rank), strict=True) for axis in pair]
    return out.permute(0, *axes, 1 + rank, 2 + 2 * rank)


def _bias(call: AttentionCall, region: Sequence[WindowRun], prefix: Sequence[Tensor] | None) -> Tensor | None:
    """The bias of every window of a region, ``(1, H, tokens, prefix + tokens)``; ``None`` if the call has none."""
    bias, rank, distances = call.score_mod, len(region), []
    if not isinstance(bias, GridBias):
        return None
    for axis, run in enumerate(region):
        index, shape = torch.arange(run.size), [1] * (2 * rank)
        shape[axis] = shape[rank + axis] = run.size
        distances.append((index[:, None] - index).view(shape))
    term = bias.over(bias.entries(distances).flatten(rank).flatten(0, rank - 1))[None]
    if prefix is None:
        return term
    front = bias.table[:, 1 - PREFIX_PAIRS, None, None] if bias.has_prefix else term.new_zeros(())
    return torch.cat([front.expand(*term.shape[:-1], prefix[0].shape[2]), term], -1)
