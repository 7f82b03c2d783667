"""The block-sparse engine: softmax attention over a band and global tokens, and its path for the CPU, ``cpu-band``.

That path cuts the queries into blocks. The keys of one block are one contiguous slice, so the slices of all blocks are a strided *view* of
the keys (``as_strided``, no copy), and one call of PyTorch's fused flash kernel runs all of them. Global columns and rows are further calls
on gathered tokens.

The calls are parts of one softmax over disjoint sets of keys. With their outputs o_p and log-sum-exps l_p, l = log Σ_p exp(l_p) and
o = Σ_p exp(l_p - l) o_p. For a gradient g of o, the gradient of a score is exp(s_ij - l_i) (g_i·v_j - g_i·o_i) (Dao 2023, FlashAttention-2,
section 3.1), which asks for the merged o and l only: the backward pass of each part is the kernel's with these.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..naming import OPERATORS
from ..private_apis import aten
from .byte_cache import KEPT
from .call import AttentionCall, DistanceBias, Pattern
from .dense import dense_attention, repeat_heads, same_dtype
from .derivatives import first_derivatives_only, one_gradient_at_a_time
from .dispatch import DENSE, DENSE_MASKED, Facts, attempt, choose
from .flex import flex_band
from .plain import blockwise_attention

FORWARD_BLOCK, FORWARD_CHUNK = 32, 64
BACKWARD_BLOCK, BACKWARD_CHUNK = 64, 4
"""Queries per block, and blocks per kernel call: the results of a call stay within the cache, and their memory is reused by the next."""
WIDE, WIDE_BLOCK, WIDE_CHUNK = 384, 192, 2
"""The same, blocks per thread, of the forward pass in bf16 where the band has :data:`WIDE` keys or more: with 64 queries or more the kernel
lays keys and values out for AMX's tiles (measured for bands of 64 to 1,024 keys and heads of 32 to 128: up to a quarter less time)."""
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
    facts = Facts(device, q_len, kv_len, call, pattern=pattern, features=q.shape[3])
    path = choose("band", facts)
    if path == "flex":
        out, path = attempt("band", facts, flex_band, q, k, v, pattern, call)
        if out is not None:
            return out
    if path == DENSE:
        return dense_attention(q, k, v, call)
    if path == DENSE_MASKED:
        return dense_attention(q, k, v, call, mask_mod=pattern.visible_mod(global_mask))
    if path == "blockwise":
        return blockwise_attention(q, k, v, pattern, call)
    key_mask, scale, bias = call.key_mask, call.scale_for(q.shape[-1]), call.score_mod
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    left, right = min(pattern.left, kv_len), min(pattern.right, kv_len)
    terms = (bias.table, bias.ahead) if isinstance(bias, DistanceBias) else (None, 0)
    return cpu_band(q, k, v, key_mask, global_mask, left, right, pattern.causal, pattern.global_rows, scale, *terms)[0]


def full_attention(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
    """Softmax attention over all keys, as :func:`block_sparse_attention`; a score term by the kernel that adds it without N×N memory."""
    exporting = torch.compiler.is_exporting() and not isinstance(call.score_mod, DistanceBias)
    if call.score_mod is None or exporting:
        return dense_attention(q, k, v, call)
    return block_sparse_attention(q, k, v, Pattern.everything(call.causal), call.replace(global_mask=None))


class Group(NamedTuple):
    """``blocks`` blocks of ``block`` queries from ``first`` on, whose key slices start ``step`` apart from ``start`` on, ``width`` long."""

    first: int
    blocks: int
    block: int
    start: int
    step: int
    width: int

    def queries(self, x: Tensor) -> Tensor:
        """The blocks of ``x (H, Nq, …)``, a view ``(blocks, H, block, …)``."""
        return _slices(x, self.first, self.blocks, self.block, self.block)

    def keys(self, x: Tensor) -> Tensor:
        """The slices of ``x (H, Nk, …)``, a view ``(blocks, H, width, …)``."""
        return _slices(x, self.start, self.blocks, self.width, self.step)

    def add_to_keys(self, total: Tensor, parts: Tensor) -> None:
        """Add ``parts (blocks, H, width, D)`` to ``total (H, Nk, D)``, one step wide at a time, since slices no wider never overlap."""
        for at in range(0, self.width, self.step):
            size = min(self.step, self.width - at)
            _slices(total, self.start + at, self.blocks, size, self.step).add_(parts[:, :, at : at + size])

    def part(self, number: int, count: int) -> Group:
        """At most ``blocks`` blocks from block ``number`` on."""
        first, start = self.first + number * self.block, self.start + number * self.step
        return self._replace(first=first, start=start, blocks=min(count, self.blocks - number))


def _slices(x: Tensor, first: int, count: int, size: int, step: int) -> Tensor:
    """View ``x (H, N, …)`` as ``(count, H, size, …)``: slice i starts at ``first + i * step``; slices may overlap."""
    heads, tokens, *inner = x.stride()
    shape = (count, x.shape[0], size, *x.shape[2:])
    return x.as_strided(shape, (step * tokens, heads, tokens, *inner), x.storage_offset() + first * tokens)


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


def band_mask(group: Group, shift: int, left: int, right: int, dtype: torch.dtype) -> Tensor:
    """Additive band mask ``(1, 1, block, width)`` of a group's slices, whose first query is at index ``shift`` of its slice; shared, so
    read-only.

    Slices at the edges have many widths, all views of one mask: that of :data:`EDGE_BLOCK` queries whose first is at index ``left``.
    """

    def make(block: int, width: int, shift: int) -> Tensor:
        distance = torch.arange(block)[:, None] + shift - torch.arange(width)[None, :]
        return additive_mask((distance > left) | (distance < -right), dtype)[None, None]

    first, last, whole = left - shift, left - shift + group.width, EDGE_BLOCK + left + right
    if group.blocks > 1 or group.block > EDGE_BLOCK or first < 0 or last > whole:
        size = group.block, group.width, shift
        return KEPT.get(("band", *size, left, right, dtype), lambda: make(*size))
    edge = KEPT.get(("edge of a band", left, right, dtype), lambda: make(EDGE_BLOCK, whole, left))
    return edge[:, :, : group.block, first:last]


class _Band(NamedTuple):
    """The settings of one call: which keys a query sees, and the factor on q·k."""

    bias: DistanceBias | None
    left: int
    right: int
    causal: bool
    global_rows: bool
    scale: float

    @classmethod
    def of(cls, dtype: torch.dtype, bias: Tensor | None, ahead: int, *settings: Any) -> _Band:
        return cls(None if bias is None else DistanceBias(bias.to(dtype), ahead), *settings)

    def on(self, mask: M, distance: Tensor | None) -> M | Tensor:
        """``mask`` with the bias at these distances ``(rows, columns)`` of query and key."""
        if self.bias is None or distance is None:
            return mask
        bias = self.bias.over(distance)[None]
        return bias if mask is None else mask + bias


class _Item(NamedTuple):
    """One batch item without its outer padding; every tensor is a view ``(H, tokens, …)``."""

    by_query: tuple[int, slice, slice]
    """Index of its queries in the batch's tensors."""
    by_key: tuple[int, slice, slice]
    shift: int
    """Position of the first query within the kept keys."""
    hole: Tensor | None
    """Additive mask ``(Nk,)`` of padding inside the kept keys, if any."""
    globals: Tensor | None
    """Positions of the global tokens within the kept keys, if any."""
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor

    def padding_rows(self) -> Tensor | None:
        """Which queries are padding between real tokens, ``(1, Nq, 1)``."""
        return None if self.hole is None else (self.hole[self.shift : self.shift + self.q.shape[1]] != 0)[None, :, None]

    def global_rows(self) -> Tensor:
        """The queries that are global tokens."""
        assert self.globals is not None
        rows = self.globals - self.shift
        return rows[(rows >= 0) & (rows < self.q.shape[1])]


def _items(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, key_mask: Tensor | None, global_mask: Tensor | None
) -> Iterator[_Item]:
    """Trim the outer padding of every batch item; items without a real token are skipped (their rows are zeros)."""
    every, kv_len, earlier = slice(None), k.shape[2], k.shape[2] - q.shape[2]
    for item in range(q.shape[0]):
        start, stop, hole = 0, kv_len, None
        if key_mask is not None:
            real = key_mask[item].nonzero()
            if not len(real):
                continue
            start, stop = int(real[0]), int(real[-1]) + 1
            if len(real) != stop - start:
                hole = additive_mask(~key_mask[item, start:stop], mask_dtype(q))
        first = max(start, earlier)
        if first >= stop:
            continue
        chosen = None if global_mask is None else global_mask[item, start:stop].nonzero()[:, 0]
        rows, keys = (item, every, slice(first - earlier, stop - earlier)), (item, every, slice(start, stop))
        kept = chosen if chosen is not None and len(chosen) else None
        yield _Item(rows, keys, first - start, hole, kept, q[rows], k[keys], v[keys], out[rows], lse[rows])


def _band_calls(item: _Item, band: _Band, block: int, count: int) -> Iterator[tuple[Group, Tensor, Tensor | None]]:
    """The band as kernel calls of at most ``count`` blocks of ``block`` queries, with their masks and, for a bias, their distances."""
    for group in groups(item.q.shape[1], item.k.shape[1], item.shift, band.left, band.right, block):
        shift, distance = group.first + item.shift - group.start, None
        if band.bias is not None:
            distance = torch.arange(group.block)[:, None] + shift - torch.arange(group.width)[None, :]
        mask = band.on(band_mask(group, shift, band.left, band.right, mask_dtype(item.q)), distance)
        for number in range(0, group.blocks, count):
            part = group.part(number, count)
            yield part, mask if item.hole is None else mask + part.keys(item.hole[None])[:, :, None], distance


def _forward_block(dtype: torch.dtype, width: int) -> tuple[int, int]:
    """Queries per block, and blocks per kernel call, for a band of ``width`` keys."""
    if dtype == torch.bfloat16 and width >= WIDE:
        return WIDE_BLOCK, WIDE_CHUNK * torch.get_num_threads()  # one thread's share stays within its cache
    return FORWARD_BLOCK, FORWARD_CHUNK


def _column_calls(item: _Item, columns: Tensor, band: _Band) -> Iterator[tuple[int, int, Tensor | None, Tensor | None]]:
    """Stretches of query rows that need the global columns: (first row, last row + 1, mask, distances), the last two where needed.

    Far from every global token no pair is hidden and no mask is needed; where the band covers all columns there is nothing to do.
    """
    q_len, left, right = item.q.shape[1], band.left, band.right
    start = torch.arange(0, q_len, FORWARD_BLOCK)[:, None] + item.shift
    stop = (start + FORWARD_BLOCK).clamp(max=q_len + item.shift) - 1
    some, every = start - columns <= left, stop - columns <= left
    if not band.causal:
        some &= columns - stop <= right
        every &= columns - start <= right
    row = 0
    for hidden, run in itertools.groupby((some.any(1).int() + every.all(1).int()).tolist()):  # no, some or all pairs are hidden
        end = min(q_len, row + FORWARD_BLOCK * len(list(run)))
        for first in range(row, end, COLUMN_ROWS) if hidden != 2 else ():
            last, mask, distance = min(first + COLUMN_ROWS, end), None, None
            if hidden or band.bias is not None:
                distance = torch.arange(first, last)[:, None] + item.shift - columns[None, :]
            if hidden and distance is not None:
                inside = distance <= left if band.causal else (distance <= left) & (distance >= -right)
                mask = additive_mask(inside, mask_dtype(item.q))[None, None]
            yield first, last, band.on(mask, distance), distance
        row = end


def _row_mask(item: _Item, rows: Tensor, band: _Band) -> tuple[Tensor | None, Tensor]:
    """Mask and distances of global query rows, which see every key but those in holes and, when causal, the future."""
    distance = (rows + item.shift)[:, None] - torch.arange(item.k.shape[1])[None]
    mask = None if item.hole is None else item.hole[None, None, None, :]
    if band.causal:
        ahead = additive_mask(distance < 0, mask_dtype(item.q))[None, None]
        mask = ahead if mask is None else mask + ahead
    return band.on(mask, distance), distance


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Tokens of ``x (H, N, …)`` as ``(1, H, g, …)``."""
    return x[:, index][None]


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
        output ``(B, H, Nq, D)``, stored token-major, and log-sum-exp ``(B, H, Nq)``.
    """
    out, lse = empty_results(q)
    if key_mask is not None:
        out.zero_()
        lse.zero_()
    band = _Band.of(mask_dtype(q), bias, ahead, left, right, causal, global_rows, scale)
    for item in _items(q, k, v, out, lse, key_mask, global_mask):
        for g, mask, _ in _band_calls(item, band, *_forward_block(q.dtype, left + right)):
            part, part_lse = flash(g.queries(item.q), g.keys(item.k), g.keys(item.v), attn_mask=mask, scale=scale)
            g.queries(item.out).copy_(part)
            g.queries(item.lse).copy_(part_lse)
        if item.globals is not None:
            _globals_forward(item, item.globals, band)
        padding = item.padding_rows()
        if padding is not None:
            item.out.masked_fill_(padding, 0)
    return out, lse


def _globals_forward(item: _Item, columns: Tensor, band: _Band) -> None:
    """Merge the global keys outside the band, and overwrite the rows of the global queries."""
    keys, values = _take(item.k, columns), _take(item.v, columns)
    for first, last, mask, _ in _column_calls(item, columns, band):
        queries, out, lse = (x[:, first:last] for x in (item.q, item.out, item.lse))
        part, part_lse = flash(queries[None], keys, values, attn_mask=mask, scale=band.scale)
        merge_into(out, lse, part[0], part_lse[0])
    rows = item.global_rows()
    if band.global_rows and len(rows):
        mask, _ = _row_mask(item, rows, band)
        part, part_lse = flash(_take(item.q, rows), item.k[None], item.v[None], attn_mask=mask, scale=band.scale)
        item.out.index_copy_(1, rows, part[0])
        item.lse.index_copy_(1, rows, part_lse[0])


class _Gradients(NamedTuple):
    """Views into the gradients of one item, all ``(H, tokens, D)``."""

    out: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    """Gradient of the whole table, ``(H, distances)``; ``None`` where it is not needed."""

    def of_call(self, band: _Band, given: tuple[Tensor, ...], mask: Tensor | None, distance: Tensor | None) -> tuple[Tensor, ...]:
        """The gradients of q, k, v of one kernel call on ``given``, its grad, q, k, v, out, lse; that of the bias is added here."""
        if self.bias is not None and band.bias is not None and distance is not None:
            band.bias.add_gradient(self.bias, distance, score_gradient(mask, band.scale, *given))
        return flash_backward(*given, 0.0, False, attn_mask=mask, scale=band.scale)


def score_gradient(mask: Tensor | None, scale: float, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> Tensor:
    """Gradient of the scores of ``softmax(q·k·scale + mask)·v``, summed over the first axis: ``(H, rows, columns)``.

    grad, q, out ``(n, H, rows, D)``, k, v ``(n, H, columns, D)``, lse ``(n, H, rows)``: of the whole softmax, of which this may be a part.
    """
    grad, q, k, v, out = (x.to(lse.dtype) for x in (grad, q, k, v, out))
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
    band = _Band.of(mask_dtype(q), bias, ahead, left, right, causal, global_rows, scale)
    for item in _items(q, k, v, out, lse, key_mask, global_mask):
        into = _Gradients(grad[item.by_query], dq[item.by_query], dk[item.by_key], dv[item.by_key], dbias if of_bias else None)
        padding = item.padding_rows()
        if padding is not None:
            into = into._replace(out=into.out.masked_fill(padding, 0))
        if item.globals is not None:
            if global_rows:
                into = _rows_backward(item, item.global_rows(), band, into)
            _columns_backward(item, item.globals, band, into)
        for g, mask, distance in _band_calls(item, band, BACKWARD_BLOCK, BACKWARD_CHUNK):
            of_out, of_q, of_k, of_v = g.queries(into.out), g.queries(item.q), g.keys(item.k), g.keys(item.v)
            given = (of_out, of_q, of_k, of_v, g.queries(item.out), g.queries(item.lse))
            part = into.of_call(band, given, mask, distance)
            g.queries(into.q).add_(part[0])
            g.add_to_keys(into.k, part[1])
            g.add_to_keys(into.v, part[2])
    return dq, dk, dv, dbias


def _rows_backward(item: _Item, rows: Tensor, band: _Band, into: _Gradients) -> _Gradients:
    """The global rows; returned without the gradients of their outputs, since no other call computed these."""
    if not len(rows):
        return into
    grad, queries, out, lse = (_take(x, rows) for x in (into.out, item.q, item.out, item.lse))
    part = into.of_call(band, (grad, queries, item.k[None], item.v[None], out, lse), *_row_mask(item, rows, band))
    into.q.index_add_(1, rows, part[0][0])
    into.k.add_(part[1][0])
    into.v.add_(part[2][0])
    return into._replace(out=into.out.index_fill(1, rows, 0))


def _columns_backward(item: _Item, columns: Tensor, band: _Band, into: _Gradients) -> None:
    keys, values = _take(item.k, columns), _take(item.v, columns)
    for first, last, mask, distance in _column_calls(item, columns, band):
        grad, queries, out, lse = (x[None, :, first:last] for x in (into.out, item.q, item.out, item.lse))
        part = into.of_call(band, (grad, queries, keys, values, out, lse), mask, distance)
        into.q[:, first:last].add_(part[0][0])
        into.k.index_add_(1, columns, part[1][0])
        into.v.index_add_(1, columns, part[2][0])


def _like_bias(q: Tensor, bias: Tensor | None) -> Tensor:
    return q.new_empty(0 if bias is None else bias.shape, dtype=mask_dtype(q))


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, key_mask, global_mask, *ctx.settings, bias, ctx.ahead = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, key_mask, global_mask, bias, *output)


@one_gradient_at_a_time()
def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    q, k, v, key_mask, global_mask, bias, out, lse = ctx.saved_tensors
    of_bias = bias is not None and ctx.needs_input_grad[10]
    settings = (*ctx.settings, bias, ctx.ahead, of_bias)
    dq, dk, dv, dbias = cpu_band_backward(grad, q, k, v, out, lse, key_mask, global_mask, *settings)
    gradients = dq, dk, dv, None, None, None, None, None, None, None, dbias.to(bias.dtype) if of_bias else None, None
    return first_derivatives_only(gradients)


cpu_band.register_fake(lambda q, *_, **__: empty_results(q))
cpu_band_backward.register_fake(
    lambda _grad, q, k, v, *settings: (*token_major(q.dtype, q, k, v), _like_bias(q, settings[-3] if settings[-1] else None))
)
cpu_band.register_autograd(_backward, setup_context=_setup_context)
