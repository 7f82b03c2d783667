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
    """Windows of equal size that follow one another along an axis."""

    first: int
    """Index of the first cell."""
    windows: int
    """Number of windows."""
    size: int
    """Cells of each window."""

    @property
    def cells(self) -> slice:
        """The cells of all these windows."""
        return slice(self.first, self.first + self.windows * self.size)


def window_runs(cells: int, window: int, shift: int) -> list[WindowRun]:
    """The windows of an axis of ``cells`` cells, in at most three runs: a partial window, the whole windows, and a
    partial window. A cell belongs to the window ``(cell + shift) // window``."""
    first = -shift % window  # cells of the first partial window
    first = first if first < cells else cells
    runs = [WindowRun(0, 1, first)] if first else []
    # no divmod, which graphs with symbolic sizes lack
    windows = (cells - first) // window
    rest = (cells - first) % window
    if windows:
        runs.append(WindowRun(first, windows, window))
    if rest:
        runs.append(WindowRun(cells - rest, 1, rest))
    return runs


def regions(grid: Grid, window: Sequence[int], shift: Sequence[int]) -> Iterator[tuple[WindowRun, ...]]:
    """The regions of the grid. A region has windows of equal size, and is given as one run of windows per axis."""
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
    prefix_out: Tensor | None = None,
) -> Tensor:
    """Softmax attention of every grid cell over the cells of its window and the shared prefix tokens.

    Args:
        q, k, v: ``(B, H, N, D)`` of the grid's tokens.
        window, shift: cells along each axis; windows are numbered by ``(cell + shift) // window``.
        shared: number of prefix tokens that every cell sees, either 0 or all of them.
        call: gives scale, dropout and key mask, and a score term of the grid if any.
        prefix_out: the output of the prefix tokens, ``(B, H, prefix, D)``, if there are any.
    Returns:
        ``(B, H, N, D)``, stored token-major, so that merging the heads is free. Cells that see no key are zeros.
    """
    # The tensors with an axis of keys, for the prefix tokens and, with q, for the cells (B, ·, *cells, ·).
    keyed = [k, v] if call.key_mask is None else [k, v, call.key_mask[:, None, :, None]]
    prefix = [x[:, :, : grid.prefix] for x in keyed] if shared else None
    axes = [window_runs(*axis) for axis in zip(grid.sizes, window, shift, strict=True)]
    tensors = [x[:, :, grid.prefix :].unflatten(2, grid.sizes) for x in (q, *keyed)]
    recorded = differentiated(q, k, v) or (call.score_mod is not None and torch.is_grad_enabled())
    if q.device.type == "cpu" and not recorded and not in_graph():
        return _in_place(tensors, axes, prefix, call, prefix_out)
    # For each region, its part of every tensor.
    tensors_of_regions = zip(*(_cut(x, axes) for x in tensors), strict=True)
    outs = []  # one per region, (B, *cells, H, D); regions next to each other on the last axis follow one another
    for region, region_tensors in zip(itertools.product(*axes), tensors_of_regions, strict=True):
        out = _region(region_tensors, region, prefix, call, _bias(call, region, prefix), recorded=True)
        outs.append(out.reshape(out.shape[0], *(run.windows * run.size for run in region), *out.shape[-2:]))
    for axis, runs in reversed([*enumerate(axes, 1)]):  # join along the last axis, then along the one before it
        count = len(runs)
        if count > 1:
            outs = [torch.cat(outs[at : at + count], axis) for at in range(0, len(outs), count)]
    out = outs[0].flatten(1, grid.rank)
    if prefix_out is not None:
        out = torch.cat([prefix_out.transpose(1, 2), out], 1)
    return out.transpose(1, 2)


def _in_place(
    tensors: Sequence[Tensor],
    axes: Sequence[Sequence[WindowRun]],
    prefix: Sequence[Tensor] | None,
    call: AttentionCall,
    prefix_out: Tensor | None,
) -> Tensor:
    """The output ``(B, H, N, D)``, computed a few windows at a time, so that the copies fit into the CPU cache and
    share memory. ``tensors`` are q, k and v, ``(B, H, *cells, D)``, and the key mask ``(B, 1, *cells, 1)``, if any."""
    q = tensors[0]
    prefix_tokens = 0 if prefix_out is None else prefix_out.shape[2]
    sizes = q.shape[2:-1]
    out: Any = None  # (B, N, H, D)
    for region in itertools.product(*axes):
        bias = _bias(call, region, prefix)
        for part in _few_windows(region, q.nbytes // math.prod(sizes)):
            cells = [run.cells for run in part]
            where = (slice(None), slice(None), *cells)
            part_out = _region([x[where] for x in tensors], part, prefix, call, bias, recorded=False)
            if out is None:  # in the dtype of the result, which autocast may change
                out = part_out.new_empty(len(q), prefix_tokens + math.prod(sizes), q.shape[1], q.shape[-1])
            # a view of the part's cells in the shape of its output
            target = out[:, prefix_tokens:].unflatten(1, sizes)[where[1:]]
            for axis, run in reversed([*enumerate(part, 1)]):
                target = target.unflatten(axis, (run.windows, run.size))
            target.copy_(part_out)
    if prefix_out is not None:
        out[:, :prefix_tokens] = prefix_out.transpose(1, 2)
    return out.transpose(1, 2)


def _few_windows(region: Sequence[WindowRun], cell_bytes: int) -> Iterator[tuple[WindowRun, ...]]:
    """Cut ``region`` into parts of at most :data:`CALL_BYTES`, but at least one window. Parts extend along the last
    axis first. ``cell_bytes``: bytes of a cell over batch and heads."""
    max_windows = CALL_BYTES // (cell_bytes * math.prod(run.size for run in region))
    axes: list[list[WindowRun]] = []  # for each axis, its run in pieces
    for first, windows, size in reversed(region):
        step = min(windows, max(1, max_windows))
        pieces = [WindowRun(first + at * size, min(step, windows - at), size) for at in range(0, windows, step)]
        axes.insert(0, pieces)
        max_windows //= windows
    yield from itertools.product(*axes)


def _cut(x: Tensor, axes: Sequence[Sequence[WindowRun]]) -> list[Tensor]:
    """Split ``x (B, H, *cells, D)`` into one part per region. The backward pass of ``split`` concatenates gradients;
    that of slices would sum padded gradients."""
    parts = [x]
    for axis, runs in enumerate(axes, 2):
        sizes = [run.windows * run.size for run in runs]
        if len(sizes) > 1:
            parts = [piece for part in parts for piece in part.split(sizes, axis)]
    return parts


def _region(
    tensors: Sequence[Tensor],
    region: Sequence[WindowRun],
    prefix: Sequence[Tensor] | None,
    call: AttentionCall,
    bias: Tensor | None,
    recorded: bool,
) -> Tensor:
    """The output of a region's windows, ``(B, windows, cells, windows, cells, …, H, D)``: along each grid axis, the
    number of windows and the cells of a window.

    Args:
        tensors: q, k and v, ``(B, H, *cells, D)``, and the key mask ``(B, 1, *cells, 1)``, if any.
        prefix: the same tensors without q for the prefix tokens, ``(B, ·, prefix, ·)``, if cells see these.
        bias: ``(1, H, tokens, prefix + tokens)``, see :func:`_bias`.
        recorded: whether operations are recorded, for gradients or a graph.
    """
    rank = len(region)
    batch, heads = tensors[0].shape[:2]
    width = tensors[0].shape[-1]
    counts = [run.windows for run in region]
    sizes = [run.size for run in region]
    windows, tokens = math.prod(counts), math.prod(sizes)
    # Each grid axis becomes two: the number of the window, and the cell inside it.
    two_axes_each = [number for pair in zip(counts, sizes, strict=True) for number in pair]
    numbers, inside = range(2, 2 + 2 * rank, 2), range(3, 3 + 2 * rank, 2)

    def in_windows(x: Tensor, shared: Tensor | None = None) -> Tensor:
        """``(B·windows, H, prefix + tokens, D)`` from ``x (B, H, *cells, D)`` and ``shared (B, H, prefix, D)``."""
        rows, features = x.shape[1], x.shape[-1]
        x = x.reshape(batch, rows, *two_axes_each, features).permute(0, *numbers, 1, *inside, 2 + 2 * rank)
        if shared is None:
            return x.reshape(batch * windows, rows, tokens, features)
        if recorded:
            # repeat_interleave takes no symbolic count in ONNX
            front = shared.unsqueeze(1).expand(-1, windows, -1, -1, -1).flatten(0, 1)
            return torch.cat([front, x.reshape(batch * windows, rows, tokens, features)], 2)
        # Without a record, x is copied only once, into the memory that also takes the prefix.
        for _ in range(rank):
            shared = shared.unsqueeze(1)
        front = shared.expand(-1, *counts, -1, -1, -1)
        joined = x.new_empty(*front.shape[:-2], front.shape[-2] + tokens, features)
        joined[..., : front.shape[-2], :] = front
        joined[..., front.shape[-2] :, :].unflatten(-2, sizes).copy_(x)
        return joined.flatten(0, rank)

    q, *keyed = tensors
    q = in_windows(q)
    k, v, *key_mask = map(in_windows, keyed, [None] * len(keyed) if prefix is None else prefix)
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
    bias, rank = call.score_mod, len(region)
    if not isinstance(bias, GridBias):
        return None
    distances = []  # along each axis, between two cells of a window
    for axis, run in enumerate(region):
        index, shape = torch.arange(run.size), [1] * (2 * rank)
        shape[axis] = shape[rank + axis] = run.size
        distances.append((index[:, None] - index).view(shape))
    term = bias.over(bias.entries(distances).flatten(rank).flatten(0, rank - 1))[None]
    if prefix is None:
        return term
    # Of the table's PREFIX_PAIRS last entries, the second is for a cell that sees a prefix token.
    prefix_term = bias.table[:, 1 - PREFIX_PAIRS, None, None] if bias.has_prefix else term.new_zeros(())
    return torch.cat([prefix_term.expand(*term.shape[:-1], prefix[0].shape[2]), term], -1)
