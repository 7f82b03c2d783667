"""CPU engine for a band plus global tokens: PyTorch's fused flash kernel over overlapping key slices, forward and backward.

Queries are cut into blocks; the keys of one block are one contiguous slice, so the slices of all blocks are a strided *view* of the
keys (``as_strided``, no copy) and one call of the fused kernel runs all of them. Global columns and rows are further calls on gathered
tokens. The parts are disjoint sets of keys, so outputs merge exactly by their log-sum-exp; and since a softmax gradient needs only the
merged output and log-sum-exp, each part's backward is the same kernel's backward with the merged values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

FORWARD_BLOCK = 64
BACKWARD_BLOCK = 128
BACKWARD_CHUNK = 16
"""Query blocks per backward call: keeps the per-block key gradients within the last-level cache."""
MASKED = -1e30
"""Additive mask: finite, so that rows which see nothing stay finite; exp(MASKED - anything real) is exactly 0."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class _Sequence:
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


def _sequences(q: Tensor, k: Tensor, key_mask: Tensor | None, global_mask: Tensor | None) -> Iterator[_Sequence]:
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
                hole = torch.zeros(stop - start, dtype=_mask_dtype(q)).masked_fill_(~key_mask[item, start:stop], MASKED)
        first = max(start, kv_len - q_len)
        if first >= stop:
            continue
        chosen = None if global_mask is None else global_mask[item, start:stop].nonzero()[:, 0]
        queries = slice(first - (kv_len - q_len), stop - (kv_len - q_len))
        yield _Sequence(item, slice(start, stop), queries, first - start, hole, chosen if chosen is not None and len(chosen) else None)


@dataclass(frozen=True)
class _Group:
    """``count`` query blocks of ``block`` queries whose key slices start ``step`` apart and are ``width`` long."""

    first: int
    count: int
    block: int
    start: int
    step: int
    width: int


def _groups(q_len: int, kv_len: int, shift: int, left: int, right: int, block: int) -> Iterator[_Group]:
    """Cover all queries: edge blocks, whose slices are clamped to the sequence, one by one; all inner blocks in one group."""
    total = -(-q_len // block)
    inner = [i for i in range(total) if i * block + shift >= left and (i + 1) * block + shift + right <= kv_len and (i + 1) * block <= q_len]
    for i in range(total):
        if inner and inner[0] < i <= inner[-1]:
            continue
        size = min(block, q_len - i * block)
        start = max(0, i * block + shift - left)
        if inner and i == inner[0]:
            yield _Group(i * block, len(inner), block, start, block, block + left + right)
        else:
            yield _Group(i * block, 1, size, start, block, min(kv_len, i * block + size + shift + right) - start)


def _mask_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _blocks(x: Tensor, first: int, count: int, size: int, step: int) -> Tensor:
    """View ``x (H, N, …)`` as ``(count, H, size, …)``: block i starts at ``first + i * step``; blocks may overlap."""
    heads, tokens, *inner = x.stride()
    return x.as_strided((count, x.shape[0], size, *x.shape[2:]), (step * tokens, heads, tokens, *inner), x.storage_offset() + first * tokens)


def _group_mask(group: _Group, seq: _Sequence, left: int, right: int, dtype: torch.dtype) -> Tensor:
    """The additive mask of a group's slices, ``(1 or count, 1, block, width)``."""
    q_idx = torch.arange(group.block)[:, None] + (group.first + seq.shift - group.start)
    kv_idx = torch.arange(group.width)[None, :]
    seen = (q_idx - kv_idx <= left) & (kv_idx - q_idx <= right)
    mask = torch.zeros(group.block, group.width, dtype=dtype).masked_fill_(~seen, MASKED)[None, None]
    if seq.hole is not None:
        mask = mask + seq.hole.as_strided((group.count, 1, 1, group.width), (group.step, 0, 0, 1), group.start)
    return mask


def _column_mask(seq: _Sequence, q_len: int, left: int, right: int, causal: bool, dtype: torch.dtype) -> Tensor:
    """Additive mask ``(1, 1, Nq, g)`` of the global columns: those that the band has counted already (or the future) are masked."""
    assert seq.globals is not None
    distance = torch.arange(q_len)[:, None] + seq.shift - seq.globals[None, :]
    in_band = (distance <= left) & (distance >= -right)
    hidden = in_band | (distance < 0) if causal else in_band
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, MASKED)[None, None]


def _rows(seq: _Sequence, q_len: int) -> Tensor:
    """Query rows (within the sequence) that are global tokens."""
    assert seq.globals is not None
    rows = seq.globals - seq.shift
    return rows[(rows >= 0) & (rows < q_len)]


def _row_mask(seq: _Sequence, rows: Tensor, kv_len: int, causal: bool, dtype: torch.dtype) -> Tensor | None:
    """Additive mask of global rows, ``(1, 1, g, Nk)``: only the future and holes are hidden."""
    mask = None if seq.hole is None else seq.hole[None, None, None, :]
    if causal:
        future = torch.arange(kv_len)[None, :] > (rows + seq.shift)[:, None]
        ahead = torch.zeros(future.shape, dtype=dtype).masked_fill_(future, MASKED)[None, None]
        mask = ahead if mask is None else mask + ahead
    return mask


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Gather tokens of ``x (H, N, D)`` as ``(1, H, g, D)``."""
    return x.index_select(1, index)[None]


@torch.library.custom_op("hf_longattn::cpu_band", mutates_args=(), device_types="cpu")
def cpu_band(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, global_mask: Tensor | None, left: int, right: int, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention over ``i - left … i + right`` and global tokens.

    Args:
        q, k, v: ``(B, H, Nq, D)``, ``(B, H, Nk, D)``; the queries are the last Nq positions.
        key_mask: ``(B, Nk)`` bool, True = real token, or None.
        global_mask: ``(B, Nk)`` bool, or None.
    Returns:
        output ``(B, H, Nq, D)`` (stored token-major, so that merging the heads is free) and log-sum-exp ``(B, H, Nq)``.
    """
    out, lse = _empty(q)
    if key_mask is not None:
        out.zero_()
        lse.zero_()
    dtype = _mask_dtype(q)
    for seq in _sequences(q, k, key_mask, global_mask):
        qs, ks, vs = q[seq.item, :, seq.queries], k[seq.item, :, seq.keys], v[seq.item, :, seq.keys]
        o, s = out[seq.item, :, seq.queries], lse[seq.item, :, seq.queries]
        q_len, kv_len = qs.shape[1], ks.shape[1]
        for g in _groups(q_len, kv_len, seq.shift, left, right, FORWARD_BLOCK):
            keys, values = (_blocks(x, g.start, g.count, g.width, g.step) for x in (ks, vs))
            part, part_lse = _flash(_blocks(qs, g.first, g.count, g.block, g.block), keys, values, attn_mask=_group_mask(g, seq, left, right, dtype), scale=scale)
            _blocks(o, g.first, g.count, g.block, g.block).copy_(part)
            _blocks(s, g.first, g.count, g.block, g.block).copy_(part_lse)
        if seq.globals is not None:
            mask = _column_mask(seq, q_len, left, right, causal, dtype)
            part, part_lse = _flash(qs[None], _take(ks, seq.globals), _take(vs, seq.globals), attn_mask=mask, scale=scale)
            merged = torch.logaddexp(s, part_lse[0])
            o.lerp_(part[0], (part_lse[0] - merged).exp_()[..., None].to(o.dtype))
            s.copy_(merged)
            rows = _rows(seq, q_len)
            if len(rows):
                part, part_lse = _flash(_take(qs, rows), ks[None], vs[None], attn_mask=_row_mask(seq, rows, kv_len, causal, dtype), scale=scale)
                o.index_copy_(1, rows, part[0])
                s.index_copy_(1, rows, part_lse[0])
        if seq.hole is not None:
            o.masked_fill_((seq.hole[seq.shift : seq.shift + q_len] != 0)[None, :, None], 0)
    return out, lse


def _empty(q: Tensor) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, head_dim = q.shape
    out = q.new_empty(batch, tokens, heads, head_dim).transpose(1, 2)
    return out, q.new_empty(batch, tokens, heads, dtype=_mask_dtype(q)).transpose(1, 2)


@cpu_band.register_fake
def _(q, k, v, key_mask, global_mask, left, right, causal, scale):  # type: ignore[no-untyped-def]
    return _empty(q)


@torch.library.custom_op("hf_longattn::cpu_band_backward", mutates_args=(), device_types="cpu")
def cpu_band_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, key_mask: Tensor | None, global_mask: Tensor | None,
    left: int, right: int, causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of :func:`cpu_band` with respect to q, k, v, in time and memory linear in the number of tokens."""
    grads = tuple(x.new_zeros(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2) for x in (q, k, v))
    dtype = _mask_dtype(q)
    for seq in _sequences(q, k, key_mask, global_mask):
        qs, os, gs = (x[seq.item, :, seq.queries] for x in (q, out, grad))
        ks, vs = (x[seq.item, :, seq.keys] for x in (k, v))
        s = lse[seq.item, :, seq.queries]
        dq, dk, dv = grads[0][seq.item, :, seq.queries], grads[1][seq.item, :, seq.keys], grads[2][seq.item, :, seq.keys]
        q_len, kv_len = qs.shape[1], ks.shape[1]
        if seq.hole is not None:
            gs = gs.masked_fill((seq.hole[seq.shift : seq.shift + q_len] != 0)[None, :, None], 0)
        if seq.globals is not None:
            rows = _rows(seq, q_len)
            if len(rows):
                row_mask = _row_mask(seq, rows, kv_len, causal, dtype)
                part = _flash_backward(_take(gs, rows), _take(qs, rows), ks[None], vs[None], _take(os, rows), _take(s, rows), 0.0, False, attn_mask=row_mask, scale=scale)
                dq.index_add_(1, rows, part[0][0])
                dk += part[1][0]
                dv += part[2][0]
                gs = gs.index_fill(1, rows, 0)
            mask = _column_mask(seq, q_len, left, right, causal, dtype)
            columns = (_take(ks, seq.globals), _take(vs, seq.globals))
            part = _flash_backward(gs[None], qs[None], *columns, os[None], s[None], 0.0, False, attn_mask=mask, scale=scale)
            dq += part[0][0]
            dk.index_add_(1, seq.globals, part[1][0])
            dv.index_add_(1, seq.globals, part[2][0])
        for group in _groups(q_len, kv_len, seq.shift, left, right, BACKWARD_BLOCK):
            mask = _group_mask(group, seq, left, right, dtype)
            for g, m in _chunks(group, mask):
                rows_of = [_blocks(x, g.first, g.count, g.block, g.block) for x in (gs, qs, os, s)]
                keys, values = (_blocks(x, g.start, g.count, g.width, g.step) for x in (ks, vs))
                part = _flash_backward(rows_of[0], rows_of[1], keys, values, rows_of[2], rows_of[3], 0.0, False, attn_mask=m, scale=scale)
                _blocks(dq, g.first, g.count, g.block, g.block).add_(part[0])
                _overlap_add(dk, part[1], g)
                _overlap_add(dv, part[2], g)
    return grads


def _chunks(group: _Group, mask: Tensor) -> Iterator[tuple[_Group, Tensor]]:
    """Split a group so that the key gradients of one call stay small."""
    for i in range(0, group.count, BACKWARD_CHUNK):
        count = min(BACKWARD_CHUNK, group.count - i)
        part = mask if mask.shape[0] == 1 else mask[i : i + count]
        yield _Group(group.first + i * group.block, count, group.block, group.start + i * group.step, group.step, group.width), part


def _overlap_add(total: Tensor, parts: Tensor, g: _Group) -> None:
    """Add the gradients of overlapping slices, ``parts (count, H, width, D)``, to ``total (H, N, D)``: stripes of one step never overlap."""
    for at in range(0, g.width, g.step):
        size = min(g.step, g.width - at)
        _blocks(total, g.start + at, g.count, size, g.step).add_(parts[:, :, at : at + size])


@cpu_band_backward.register_fake
def _(grad, q, k, v, out, lse, key_mask, global_mask, left, right, causal, scale):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2) for x in (q, k, v))


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, key_mask, global_mask, *ctx.settings = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, key_mask, global_mask, *output)


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    q, k, v, key_mask, global_mask, out, lse = ctx.saved_tensors
    dq, dk, dv = cpu_band_backward(grad, q, k, v, out, lse, key_mask, global_mask, *ctx.settings)
    return dq, dk, dv, None, None, None, None, None, None


cpu_band.register_autograd(_backward, setup_context=_setup_context)
