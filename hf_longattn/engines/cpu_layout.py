"""How the CPU engine lays a band over a sequence: query blocks with their key slices as strided views, and the masks at the edges."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import BackendError
from .byte_cache import KEPT

COLUMN_ROWS = 1024
"""Query rows per call over the global columns, at most."""
EDGE_BLOCK = 128
"""Queries per call where slices are clamped to the sequence: few calls, at the price of some masked pairs."""
MASKED = -1e30
"""Additive mask: finite, so that rows which see nothing stay finite; exp(MASKED - anything real) is exactly 0."""


def _operator(name: str) -> Any:
    """An operator of PyTorch that is no part of its public interface."""
    try:
        return getattr(torch.ops.aten, name)
    except AttributeError:
        sentence = (
            f"This version of torch has no operator aten::{name}, by which attention runs on the CPU; "
            "install one that hf_longattn names in its requirements."
        )

        def missing(*_: Any, **__: Any) -> Any:
            raise BackendError(sentence)

        return missing


flash = _operator("_scaled_dot_product_flash_attention_for_cpu")
flash_backward = _operator("_scaled_dot_product_flash_attention_for_cpu_backward")


@dataclass(frozen=True)
class Sequence:
    """One batch item without its outer padding: where its keys and queries lie in the batch's tensors."""

    item: int
    keys: slice
    queries: slice
    shift: int
    """Position of the first query within the kept keys."""
    hole: Tensor | None
    """Additive mask (Nk,) of padding inside the kept keys, where there is any."""
    globals: Tensor | None
    """Positions of the global tokens within the kept keys, where there are any."""


def sequences(q: Tensor, k: Tensor, key_mask: Tensor | None, global_mask: Tensor | None) -> Iterator[Sequence]:
    """Cut the outer padding of every batch item; items without a real token are left out (their rows are zeros)."""
    q_len, kv_len = q.shape[2], k.shape[2]
    for item in range(q.shape[0]):
        start, stop, hole = 0, kv_len, None
        if key_mask is not None:
            real = key_mask[item].nonzero()
            if not len(real):
                continue
            start, stop = int(real[0]), int(real[-1]) + 1
            if len(real) != stop - start:
                hole = torch.zeros(stop - start, dtype=mask_dtype(q)).masked_fill_(~key_mask[item, start:stop], MASKED)
        first = max(start, kv_len - q_len)
        if first >= stop:
            continue
        chosen = None if global_mask is None else global_mask[item, start:stop].nonzero()[:, 0]
        queries = slice(first - (kv_len - q_len), stop - (kv_len - q_len))
        yield Sequence(item, slice(start, stop), queries, first - start, hole, chosen if chosen is not None and len(chosen) else None)


@dataclass(frozen=True)
class Group:
    """``count`` query blocks of ``block`` queries whose key slices start ``step`` apart and are ``width`` long."""

    first: int
    count: int
    block: int
    start: int
    step: int
    width: int


def groups(q_len: int, kv_len: int, shift: int, left: int, right: int, block: int) -> Iterator[Group]:
    """Cover all queries: the inner blocks, whose slices lie within the sequence, in one group; the edges in a few larger blocks."""
    first = -(-max(0, left - shift) // block)
    last = max(first, min(q_len, kv_len - right - shift) // block)
    if last > first:
        yield Group(first * block, last - first, block, first * block + shift - left, block, block + left + right)
    edges = [(0, first * block), (last * block, q_len)] if last > first else [(0, q_len)]
    for start, stop in edges:
        for row in range(start, stop, EDGE_BLOCK):
            size = min(EDGE_BLOCK, stop - row)
            from_key = max(0, row + shift - left)
            width = min(kv_len, row + size + shift + right) - from_key
            yield Group(row, 1, size, from_key, width, width)


def mask_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def stable_order(numbers: Tensor, most: int) -> Tensor:
    """Indices that sort ``numbers (…, N)`` from -1 to ``most``, of equal ones the first first; in 16 bits, NumPy has a radix sort."""
    if most >= 1 << 15:
        return numbers.argsort(dim=-1, stable=True)
    return torch.from_numpy(numbers.to(torch.int16).numpy().argsort(-1, kind="stable"))


def token_major(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Empty tensors of the same shapes ``(B, H, N, D)``, stored as ``(B, N, H, D)``."""
    return tuple(x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3], dtype=dtype).transpose(1, 2) for x in tensors)


def empty_results(q: Tensor) -> tuple[Tensor, Tensor]:
    """An output ``(B, H, N, D)`` and a log-sum-exp ``(B, H, N)`` for ``q (B, H, N, D)``, stored token-major and not yet written."""
    lse = q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=mask_dtype(q)).transpose(1, 2)
    return token_major(q.dtype, q)[0], lse


def blocks(x: Tensor, first: int, count: int, size: int, step: int) -> Tensor:
    """View ``x (H, N, …)`` as ``(count, H, size, …)``: block i starts at ``first + i * step``; blocks may overlap."""
    heads, tokens, *inner = x.stride()
    return x.as_strided(
        (count, x.shape[0], size, *x.shape[2:]), (step * tokens, heads, tokens, *inner), x.storage_offset() + first * tokens
    )


def band_mask(group: Group, shift: int, left: int, right: int, dtype: torch.dtype) -> Tensor:
    """Additive band mask ``(1, 1, block, width)`` of a group's slices, whose first query lies ``shift`` keys into them. Shared: never
    written to.

    Slices at the edges have many widths, and all are parts of one: that of :data:`EDGE_BLOCK` queries whose first lies ``left`` keys in.
    """

    def make(block: int, width: int, shift: int) -> Tensor:
        distance = torch.arange(block)[:, None] + shift - torch.arange(width)[None, :]
        seen = (distance <= left) & (distance >= -right)
        return torch.zeros(block, width, dtype=dtype).masked_fill_(~seen, MASKED)[None, None]

    first, last, whole = left - shift, left - shift + group.width, EDGE_BLOCK + left + right
    if group.count > 1 or group.block > EDGE_BLOCK or first < 0 or last > whole:
        size = group.block, group.width, shift
        return KEPT.get(("band", *size, left, right, dtype), lambda: make(*size))
    edge = KEPT.get(("edge of a band", left, right, dtype), lambda: make(EDGE_BLOCK, whole, left))
    return edge[:, :, : group.block, first:last]


def group_mask(group: Group, seq: Sequence, left: int, right: int, dtype: torch.dtype) -> Tensor:
    """The additive mask of a group's slices, ``(1 or count, 1, block, width)``."""
    mask = band_mask(group, group.first + seq.shift - group.start, left, right, dtype)
    if seq.hole is not None:
        mask = mask + seq.hole.as_strided((group.count, 1, 1, group.width), (group.step, 0, 0, 1), group.start)
    return mask


def column_runs(seq: Sequence, q_len: int, left: int, right: int, causal: bool, block: int) -> Iterator[tuple[int, int, bool]]:
    """Stretches of query rows that need the global columns, as (first row, last row + 1, whether some pairs are hidden).

    Far from every global token no pair is hidden and no mask is needed; where the band has counted all columns there is nothing to do.
    """
    assert seq.globals is not None
    start = torch.arange(0, q_len, block)[:, None] + seq.shift
    stop = (start + block).clamp(max=q_len + seq.shift) - 1
    some = start - seq.globals <= left
    every = stop - seq.globals <= left
    if not causal:
        some &= seq.globals - stop <= right
        every &= seq.globals - start <= right
    state = (some.any(1).int() + every.all(1).int()).tolist()
    row = 0
    for kind, run in itertools.groupby(state):
        end = min(q_len, row + block * len(list(run)))
        for first in range(row, end, COLUMN_ROWS) if kind != 2 else ():
            yield first, min(first + COLUMN_ROWS, end), kind == 1
        row = end


def distances(group: Group, seq: Sequence) -> Tensor:
    """Query position - key position in every block of a group, ``(block, width)``."""
    shift = group.first + seq.shift - group.start
    return torch.arange(group.block)[:, None] + shift - torch.arange(group.width)[None, :]


def column_distances(seq: Sequence, first: int, last: int) -> Tensor:
    """The same between a stretch of query rows and the global columns, ``(rows, g)``."""
    assert seq.globals is not None
    return torch.arange(first, last)[:, None] + seq.shift - seq.globals[None, :]


def column_mask(distance: Tensor, left: int, right: int, causal: bool, dtype: torch.dtype) -> Tensor:
    """Additive mask ``(1, 1, rows, g)`` of the global columns: those that the band has counted already (or the future) are masked."""
    hidden = distance <= left
    if not causal:
        hidden &= distance >= -right
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, MASKED)[None, None]


def query_rows(seq: Sequence, q_len: int) -> Tensor:
    """Query rows (within the sequence) that are global tokens."""
    assert seq.globals is not None
    rows = seq.globals - seq.shift
    return rows[(rows >= 0) & (rows < q_len)]


def mask_of_rows(seq: Sequence, distance: Tensor, causal: bool, dtype: torch.dtype) -> Tensor | None:
    """Additive mask of global rows at these distances ``(g, Nk)`` from the keys, ``(1, 1, g, Nk)``: the future and holes are hidden."""
    mask = None if seq.hole is None else seq.hole[None, None, None, :]
    if causal:
        ahead = torch.zeros(distance.shape, dtype=dtype).masked_fill_(distance < 0, MASKED)[None, None]
        mask = ahead if mask is None else mask + ahead
    return mask


def take(x: Tensor, index: Tensor) -> Tensor:
    """Gather tokens of ``x (H, N, D)`` as ``(1, H, g, D)``."""
    return x[:, index][None]


def chunks(group: Group, mask: Tensor, count: int) -> Iterator[tuple[Group, Tensor]]:
    """Split a group into calls of at most ``count`` blocks, whose results stay within the cache."""
    for i in range(0, group.count, count):
        size = min(count, group.count - i)
        part = mask if mask.shape[0] == 1 else mask[i : i + size]
        yield Group(group.first + i * group.block, size, group.block, group.start + i * group.step, group.step, group.width), part


def overlap_add(total: Tensor, parts: Tensor, g: Group) -> None:
    """Add overlapping slices, ``parts (count, H, width, D)``, to ``total (H, N, D)``: stripes of one step never overlap."""
    for at in range(0, g.width, g.step):
        size = min(g.step, g.width - at)
        blocks(total, g.start + at, g.count, size, g.step).add_(parts[:, :, at : at + size])
