"""The block-sparse engine: softmax attention over a band and global tokens, and its path for the CPU, ``cpu-band``.

The CPU path calls PyTorch's fused flash kernel over overlapping key slices, forward and backward.

Queries are cut into blocks; the keys of one block are one contiguous slice, so the slices of all blocks are a strided *view* of the
keys (``as_strided``, no copy) and one call of the fused kernel runs all of them. Global columns and rows are further calls on gathered
tokens. The parts are disjoint sets of keys, so outputs merge exactly by their log-sum-exp. A softmax gradient needs only the merged output
and log-sum-exp, so the backward pass of each part is the kernel's backward with the merged values.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..naming import OPERATORS
from ..private_apis import aten
from .byte_cache import KEPT
from .call import AttentionCall, DistanceBias, Pattern
from .dense import dense_attention, repeat_heads, same_dtype
from .dispatch import DENSE, DENSE_MASKED, Facts, choose
from .flex import flex_band
from .plain import blockwise_attention

FORWARD_BLOCK, FORWARD_CHUNK = 32, 64
BACKWARD_BLOCK, BACKWARD_CHUNK = 64, 4
"""Queries per block, and blocks per kernel call: the results of a call stay within the cache, and their memory is reused by the next."""
COLUMN_ROWS = 1024
"""Most query rows per call over the global columns."""
EDGE_BLOCK = 128
"""Queries per call where slices are clamped to the sequence: few calls, at the price of some masked pairs."""

M = TypeVar("M", Tensor, Tensor | None)
MASKED = -1e30
"""Additive mask. Finite, so that rows without a visible key stay finite; exp(MASKED - any score) is exactly 0."""
flash, flash_backward = aten("cpu_flash"), aten("cpu_flash", 1)
"""PyTorch's fused attention kernel for the CPU."""


def mask_dtype(q: Tensor) -> torch.dtype:
    """The dtype that the kernel expects of masks, and in which it returns log-sum-exps."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def additive_mask(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros, and :data:`MASKED` where ``hidden`` (bool)."""
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, MASKED)


def padding_of(key_mask: Tensor | None, item: int, dtype: torch.dtype) -> Tensor | None:
    """The additive mask ``(N,)`` of one batch item's padding, if it has any, from ``key_mask (B, N)``."""
    return None if key_mask is None or bool(key_mask[item].all()) else additive_mask(~key_mask[item], dtype)


def token_major(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Uninitialised tensors of the same shapes ``(B, H, N, D)``, stored as ``(B, N, H, D)``, so that merging the heads is free."""
    return tuple(x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3], dtype=dtype).transpose(1, 2) for x in tensors)


def empty_results(q: Tensor) -> tuple[Tensor, Tensor]:
    """Uninitialised output ``(B, H, N, D)`` and log-sum-exp ``(B, H, N)`` for ``q (B, H, N, D)``, stored token-major."""
    lse = q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=mask_dtype(q)).transpose(1, 2)
    return token_major(q.dtype, q)[0], lse


def merge_into(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Merge the output ``(…, N, D)`` and log-sum-exp ``(…, N)`` of a part with those of the parts before it, in place."""
    merged = torch.logaddexp(lse, part_lse)
    out.lerp_(part, (part_lse - merged).exp_()[..., None].to(out.dtype))
    lse.copy_(merged)


def zero_unseen(out: Tensor, lse: Tensor) -> None:
    """Set the rows to zero that saw no key."""
    nothing = lse <= MASKED / 2
    if bool(nothing.any()):
        out.masked_fill_(nothing[..., None], 0)
        lse.masked_fill_(nothing, 0)


def block_sparse_attention(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, call: AttentionCall) -> Tensor:
    """Softmax attention over the keys that ``pattern`` visits.

    Args:
        q, k, v: ``(B, H, Nq, D)`` and ``(B, H_kv, Nk, D)``; the queries are the last Nq positions.
        call: its global mask is used where the pattern has globals; causality is the pattern's.
    Returns:
        ``(B, H, Nq, D)``. Rows of padding are finite and mean nothing.
    """
    device, q_len, kv_len = q.device.type, q.shape[2], k.shape[2]
    if torch.is_autocast_enabled(device):
        q, k, v = same_dtype(q, k, v)
    if k.shape[1] != q.shape[1]:
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    global_mask = call.global_mask if pattern.has_globals else None
    if call.causal != pattern.causal or global_mask is not call.global_mask:
        call = call.replace(causal=pattern.causal, global_mask=global_mask)
    path = choose("band", Facts(device, q_len, kv_len, call, pattern=pattern))
    if path == DENSE:
        return dense_attention(q, k, v, call)
    if path == DENSE_MASKED:
        return dense_attention(q, k, v, call, mask_mod=pattern.visible_mod(global_mask))
    if path == "flex":
        return flex_band(q, k, v, pattern, call)
    if path == "blockwise":
        return blockwise_attention(q, k, v, pattern, call)
    key_mask, scale, bias = call.key_mask, call.scale_for(q.shape[-1]), call.score_mod
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    left, right = min(pattern.left, kv_len), min(pattern.right, kv_len)
    terms = (bias.table, bias.ahead) if isinstance(bias, DistanceBias) else (None, 0)
    return cpu_band(q, k, v, key_mask, global_mask, left, right, pattern.causal, pattern.global_rows, scale, *terms)[0]


@dataclass(frozen=True)
class Sequence:
    """One batch item without its outer padding: the position of its keys and queries in the batch's tensors."""

    item: int
    keys: slice
    queries: slice
    shift: int
    """Position of the first query within the kept keys."""
    hole: Tensor | None
    """Additive mask ``(Nk,)`` of padding inside the kept keys, if any."""
    globals: Tensor | None
    """Positions of the global tokens within the kept keys, if any."""


def sequences(q: Tensor, k: Tensor, key_mask: Tensor | None, global_mask: Tensor | None) -> Iterator[Sequence]:
    """Trim the outer padding of every batch item; items without a real token are skipped (their rows are zeros)."""
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


def blocks(x: Tensor, first: int, count: int, size: int, step: int) -> Tensor:
    """View ``x (H, N, …)`` as ``(count, H, size, …)``: block i starts at ``first + i * step``; blocks may overlap."""
    heads, tokens, *inner = x.stride()
    return x.as_strided(
        (count, x.shape[0], size, *x.shape[2:]), (step * tokens, heads, tokens, *inner), x.storage_offset() + first * tokens
    )


def band_mask(group: Group, shift: int, left: int, right: int, dtype: torch.dtype) -> Tensor:
    """Additive band mask ``(1, 1, block, width)`` of a group's slices, whose first query is at index ``shift`` of its slice; shared, so
    read-only.

    Slices at the edges have many widths, all views of one mask: that of :data:`EDGE_BLOCK` queries whose first is at index ``left``.
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

    Far from every global token no pair is hidden and no mask is needed; where the band covers all columns there is nothing to do.
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
    """Additive mask ``(1, 1, rows, g)`` of the global columns: those inside the band (or in the future) are masked."""
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
    """Additive mask ``(1, 1, g, Nk)`` of global rows at these distances ``(g, Nk)`` from the keys: the future and holes are hidden."""
    mask = None if seq.hole is None else seq.hole[None, None, None, :]
    if causal:
        ahead = torch.zeros(distance.shape, dtype=dtype).masked_fill_(distance < 0, MASKED)[None, None]
        mask = ahead if mask is None else mask + ahead
    return mask


def take(x: Tensor, index: Tensor) -> Tensor:
    """Gather tokens of ``x (H, N, D)`` as ``(1, H, g, D)``."""
    return x[:, index][None]


def chunks(group: Group, mask: Tensor, count: int) -> Iterator[tuple[Group, Tensor]]:
    """Split a group into calls of at most ``count`` blocks."""
    for i in range(0, group.count, count):
        size = min(count, group.count - i)
        part = mask if mask.shape[0] == 1 else mask[i : i + size]
        yield Group(group.first + i * group.block, size, group.block, group.start + i * group.step, group.step, group.width), part


def overlap_add(total: Tensor, parts: Tensor, g: Group) -> None:
    """Add overlapping slices ``parts (count, H, width, D)`` to ``total (H, N, D)``, one step wide at a time, since those never overlap."""
    for at in range(0, g.width, g.step):
        size = min(g.step, g.width - at)
        blocks(total, g.start + at, g.count, size, g.step).add_(parts[:, :, at : at + size])


class _Band(NamedTuple):
    """The settings of one call: which keys a query sees, and the factor on q·k."""

    left: int
    right: int
    causal: bool
    global_rows: bool
    scale: float
    bias: DistanceBias | None

    def on(self, mask: M, distance: Tensor | None) -> M | Tensor:
        """``mask`` with the bias at these distances ``(rows, columns)`` of query and key."""
        if self.bias is None or distance is None:
            return mask
        bias = self.bias.over(distance)[None]
        return bias if mask is None else mask + bias


class _Item(NamedTuple):
    """One batch item cut to its real tokens; every tensor is a view ``(H, tokens, …)``."""

    seq: Sequence
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor

    def padding_rows(self) -> Tensor | None:
        """Which queries are padding between real tokens, ``(1, Nq, 1)``."""
        hole = self.seq.hole
        return None if hole is None else (hole[self.seq.shift : self.seq.shift + self.q.shape[1]] != 0)[None, :, None]


def _items(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, key_mask: Tensor | None, global_mask: Tensor | None
) -> Iterator[_Item]:
    for seq in sequences(q, k, key_mask, global_mask):
        by_query = [x[seq.item, :, seq.queries] for x in (q, out, lse)]
        by_key = [x[seq.item, :, seq.keys] for x in (k, v)]
        yield _Item(seq, by_query[0], *by_key, *by_query[1:])


@torch.library.custom_op(f"{OPERATORS}::cpu_band", mutates_args=(), device_types="cpu")
def cpu_band(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, global_mask: Tensor | None,
    left: int, right: int, causal: bool, global_rows: bool, scale: float, bias: Tensor | None = None, ahead: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention over ``i - left … i + right`` and global tokens.

    Args:
        q, k, v: ``(B, H, Nq, D)``, ``(B, H, Nk, D)``; the queries are the last Nq positions.
        key_mask: ``(B, Nk)`` bool, True = real token, or None.
        global_mask: ``(B, Nk)`` bool, or None: the keys that every query sees.
        global_rows: whether the global tokens also see every key.
        bias, ahead: added to the scores by distance, as :class:`DistanceBias` says.
    Returns:
        output ``(B, H, Nq, D)`` (stored token-major, so that merging the heads is free) and log-sum-exp ``(B, H, Nq)``.
    """
    out, lse = empty_results(q)
    if key_mask is not None:
        out.zero_()
        lse.zero_()
    band = _band(q, left, right, causal, global_rows, scale, bias, ahead)
    for item in _items(q, k, v, out, lse, key_mask, global_mask):
        _band_forward(item, band)
        if item.seq.globals is not None:
            _columns_forward(item, item.seq.globals, band)
            if global_rows:
                _rows_forward(item, query_rows(item.seq, item.q.shape[1]), band)
        padding = item.padding_rows()
        if padding is not None:
            item.out.masked_fill_(padding, 0)
    return out, lse


def _band_forward(item: _Item, band: _Band) -> None:
    for g, mask, _ in _band_calls(item, band, FORWARD_BLOCK, FORWARD_CHUNK):
        queries, out, lse = (blocks(x, g.first, g.count, g.block, g.block) for x in (item.q, item.out, item.lse))
        keys, values = (blocks(x, g.start, g.count, g.width, g.step) for x in (item.k, item.v))
        part, part_lse = flash(queries, keys, values, attn_mask=mask, scale=band.scale)
        out.copy_(part)
        lse.copy_(part_lse)


def _band_calls(item: _Item, band: _Band, block: int, count: int) -> Iterator[tuple[Group, Tensor, Tensor | None]]:
    """The band as kernel calls of at most ``count`` blocks of ``block`` queries, with their masks and, for a bias, their distances."""
    dtype = mask_dtype(item.q)
    for group in groups(item.q.shape[1], item.k.shape[1], item.seq.shift, band.left, band.right, block):
        distance = None if band.bias is None else distances(group, item.seq)
        whole = group_mask(group, item.seq, band.left, band.right, dtype)
        every = whole if len(whole) > 1 else band.on(whole, distance)  # otherwise every block has its mask, and the bias is added per call
        for part, mask in chunks(group, every, count):
            yield part, mask if every is not whole else band.on(mask, distance), distance


def _columns_forward(item: _Item, chosen: Tensor, band: _Band) -> None:
    """Merge the global keys outside the band."""
    keys, values = take(item.k, chosen), take(item.v, chosen)
    for first, last, mask, _ in _column_runs(item, band):
        queries, out, lse = (x[:, first:last] for x in (item.q, item.out, item.lse))
        part, part_lse = flash(queries[None], keys, values, attn_mask=mask, scale=band.scale)
        # The part's share of the merged softmax is exp(part) / (exp(part) + exp(lse)).
        out.lerp_(part[0], torch.sigmoid(part_lse[0] - lse)[..., None].to(out.dtype))
        torch.logaddexp(lse, part_lse[0], out=lse)


def _column_runs(item: _Item, band: _Band) -> Iterator[tuple[int, int, Tensor | None, Tensor | None]]:
    left, right, causal = band.left, band.right, band.causal
    for first, last, masked in column_runs(item.seq, item.q.shape[1], left, right, causal, FORWARD_BLOCK):
        distance = column_distances(item.seq, first, last) if masked or band.bias is not None else None
        mask = column_mask(distance, left, right, causal, mask_dtype(item.q)) if masked and distance is not None else None
        yield first, last, band.on(mask, distance), distance


def _of_rows(item: _Item, rows: Tensor, band: _Band) -> tuple[Tensor | None, Tensor]:
    """Mask and distances of global query rows."""
    distance = (rows + item.seq.shift)[:, None] - torch.arange(item.k.shape[1])[None]
    return band.on(mask_of_rows(item.seq, distance, band.causal, mask_dtype(item.q)), distance), distance


def _rows_forward(item: _Item, rows: Tensor, band: _Band) -> None:
    """Overwrite the rows of the global queries, which see every key."""
    if len(rows):
        mask, _ = _of_rows(item, rows, band)
        part, part_lse = flash(take(item.q, rows), item.k[None], item.v[None], attn_mask=mask, scale=band.scale)
        item.out.index_copy_(1, rows, part[0])
        item.lse.index_copy_(1, rows, part_lse[0])


@cpu_band.register_fake
def _(q, k, v, key_mask, global_mask, left, right, causal, global_rows, scale, bias=None, ahead=0):  # type: ignore[no-untyped-def]
    return empty_results(q)


class _Gradients(NamedTuple):
    """Views into the gradients of one item, all ``(H, tokens, D)``."""

    out: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    """Gradient of the whole table, ``(H, distances)``; ``None`` where it is not needed."""

    def add_bias(self, band: _Band, parts: tuple[Tensor, ...], mask: Tensor | None, distance: Tensor | None) -> None:
        """Add the contribution of one kernel call; ``parts`` are its grad, q, k, v, out, lse."""
        if self.bias is not None and band.bias is not None and distance is not None:
            grad, q, k, v, out, lse = parts
            band.bias.add_gradient(self.bias, distance, score_gradient(q, k, v, out, lse, grad, mask, band.scale))


def score_gradient(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grad: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Gradient of the scores of ``softmax(q·k·scale + mask)·v``, summed over the first axis: ``(H, rows, columns)``.

    q, out, grad ``(n, H, rows, D)``, k, v ``(n, H, columns, D)``, lse ``(n, H, rows)``: of the whole softmax, of which this may be a part.
    """
    dtype = lse.dtype
    q, k, v, out, grad = (x.to(dtype) for x in (q, k, v, out, grad))
    scores = (q @ k.transpose(-1, -2)).mul_(scale)
    if mask is not None:
        scores = scores.add_(mask)
    weights = scores.sub_(lse[..., None]).exp_()
    of_weights = (grad @ v.transpose(-1, -2)).sub_((grad * out).sum(-1, keepdim=True))
    return weights.mul_(of_weights).sum(0)


@torch.library.custom_op(f"{OPERATORS}::cpu_band_backward", mutates_args=(), device_types="cpu")
def cpu_band_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, key_mask: Tensor | None, global_mask: Tensor | None,
    left: int, right: int, causal: bool, global_rows: bool, scale: float, bias: Tensor | None, ahead: int, of_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of :func:`cpu_band` with respect to q, k, v and, with ``of_bias``, the bias (otherwise empty), in time and memory linear
    in the number of tokens."""
    dbias = _like_bias(q, bias if of_bias else None).zero_()
    dq, dk, dv = (x.zero_() for x in token_major(q.dtype, q, k, v))
    band = _band(q, left, right, causal, global_rows, scale, bias, ahead)
    for item in _items(q, k, v, out, lse, key_mask, global_mask):
        at, queries, keys = item.seq.item, item.seq.queries, item.seq.keys
        into = _Gradients(grad[at, :, queries], dq[at, :, queries], dk[at, :, keys], dv[at, :, keys], dbias if of_bias else None)
        padding = item.padding_rows()
        if padding is not None:
            into = into._replace(out=into.out.masked_fill(padding, 0))
        if item.seq.globals is not None:
            if global_rows:
                rows = query_rows(item.seq, item.q.shape[1])
                _rows_backward(item, rows, band, into)
                into = into._replace(out=into.out.index_fill(1, rows, 0))
            _columns_backward(item, item.seq.globals, band, into)
        _band_backward(item, band, into)
    return dq, dk, dv, dbias


def _rows_backward(item: _Item, rows: Tensor, band: _Band, into: _Gradients) -> None:
    if len(rows):
        mask, distance = _of_rows(item, rows, band)
        grad, queries, out, lse = (take(x, rows) for x in (into.out, item.q, item.out, item.lse))
        part = flash_backward(grad, queries, item.k[None], item.v[None], out, lse, 0.0, False, attn_mask=mask, scale=band.scale)
        into.q.index_add_(1, rows, part[0][0])
        into.k.add_(part[1][0])
        into.v.add_(part[2][0])
        into.add_bias(band, (grad, queries, item.k[None], item.v[None], out, lse), mask, distance)


def _columns_backward(item: _Item, chosen: Tensor, band: _Band, into: _Gradients) -> None:
    columns = take(item.k, chosen), take(item.v, chosen)
    for first, last, mask, distance in _column_runs(item, band):
        grad, queries, out, lse = (x[None, :, first:last] for x in (into.out, item.q, item.out, item.lse))
        part = flash_backward(grad, queries, *columns, out, lse, 0.0, False, attn_mask=mask, scale=band.scale)
        into.q[:, first:last].add_(part[0][0])
        into.k.index_add_(1, chosen, part[1][0])
        into.v.index_add_(1, chosen, part[2][0])
        into.add_bias(band, (grad, queries, *columns, out, lse), mask, distance)


def _band_backward(item: _Item, band: _Band, into: _Gradients) -> None:
    for g, mask, distance in _band_calls(item, band, BACKWARD_BLOCK, BACKWARD_CHUNK):
        grad, queries, out, lse = (blocks(x, g.first, g.count, g.block, g.block) for x in (into.out, item.q, item.out, item.lse))
        keys, values = (blocks(x, g.start, g.count, g.width, g.step) for x in (item.k, item.v))
        part = flash_backward(grad, queries, keys, values, out, lse, 0.0, False, attn_mask=mask, scale=band.scale)
        blocks(into.q, g.first, g.count, g.block, g.block).add_(part[0])
        overlap_add(into.k, part[1], g)
        overlap_add(into.v, part[2], g)
        into.add_bias(band, (grad, queries, keys, values, out, lse), mask, distance)


def _band(
    q: Tensor, left: int, right: int, causal: bool, global_rows: bool, scale: float, bias: Tensor | None, ahead: int
) -> _Band:  # fmt: skip
    kept = None if bias is None else DistanceBias(bias.to(mask_dtype(q)), ahead)
    return _Band(left, right, causal, global_rows, scale, kept)


def _like_bias(q: Tensor, bias: Tensor | None) -> Tensor:
    return q.new_empty(0 if bias is None else bias.shape, dtype=mask_dtype(q))


@cpu_band_backward.register_fake
def _(grad, q, k, v, out, lse, key_mask, global_mask, left, right, causal, global_rows, scale, bias, ahead, of_bias):  # type: ignore[no-untyped-def]
    return *token_major(q.dtype, q, k, v), _like_bias(q, bias if of_bias else None)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, key_mask, global_mask, *ctx.settings, bias, ctx.ahead = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, key_mask, global_mask, bias, *output)


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    q, k, v, key_mask, global_mask, bias, out, lse = ctx.saved_tensors
    of_bias = bias is not None and ctx.needs_input_grad[10]
    settings = (*ctx.settings, bias, ctx.ahead, of_bias)
    dq, dk, dv, dbias = cpu_band_backward(grad, q, k, v, out, lse, key_mask, global_mask, *settings)
    return dq, dk, dv, None, None, None, None, None, None, None, dbias.to(bias.dtype) if of_bias else None, None


cpu_band.register_autograd(_backward, setup_context=_setup_context)
