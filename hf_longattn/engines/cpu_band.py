"""CPU engine for a band plus global tokens: PyTorch's fused flash kernel over overlapping key slices, forward and backward.

Queries are cut into blocks; the keys of one block are one contiguous slice, so the slices of all blocks are a strided *view* of the
keys (``as_strided``, no copy) and one call of the fused kernel runs all of them. Global columns and rows are further calls on gathered
tokens. The parts are disjoint sets of keys, so outputs merge exactly by their log-sum-exp; and since a softmax gradient needs only the
merged output and log-sum-exp, each part's backward is the same kernel's backward with the merged values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..naming import OPERATORS
from .cpu_layout import (
    Group,
    Sequence,
    blocks,
    chunks,
    column_distances,
    column_mask,
    column_runs,
    distances,
    empty_results,
    flash,
    flash_backward,
    group_mask,
    groups,
    mask_dtype,
    mask_of_rows,
    overlap_add,
    query_rows,
    sequences,
    take,
    token_major,
)
from .distance_bias import DistanceBias, score_gradient

FORWARD_BLOCK, FORWARD_CHUNK = 32, 64
BACKWARD_BLOCK, BACKWARD_CHUNK = 64, 4
"""Queries per block, and blocks per kernel call: what a call returns stays within the cache, and its memory is reused by the next."""


M = TypeVar("M", Tensor, Tensor | None)


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
    """The band as kernel calls of at most ``count`` blocks of ``block`` queries, each with its mask, and with a bias its distances."""
    dtype = mask_dtype(item.q)
    for group in groups(item.q.shape[1], item.k.shape[1], item.seq.shift, band.left, band.right, block):
        distance = None if band.bias is None else distances(group, item.seq)
        whole = group_mask(group, item.seq, band.left, band.right, dtype)
        every = whole if len(whole) > 1 else band.on(whole, distance)  # with a mask for each block the bias is added where they are used
        for part, mask in chunks(group, every, count):
            yield part, mask if every is not whole else band.on(mask, distance), distance


def _columns_forward(item: _Item, chosen: Tensor, band: _Band) -> None:
    """Merge the global keys that the band has not counted."""
    keys, values = take(item.k, chosen), take(item.v, chosen)
    for first, last, mask, _ in _column_runs(item, band):
        queries, out, lse = (x[:, first:last] for x in (item.q, item.out, item.lse))
        part, part_lse = flash(queries[None], keys, values, attn_mask=mask, scale=band.scale)
        # The share of the part under the merged softmax is exp(part) / (exp(part) + exp(lse)).
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
    """Put the global queries, which see every key, over their rows."""
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
    """Into that of the whole table, ``(H, distances)``; ``None`` where it is not asked for."""

    def add_bias(self, band: _Band, parts: tuple[Tensor, ...], mask: Tensor | None, distance: Tensor | None) -> None:
        """Add what one kernel call gives; ``parts`` are grad, q, k, v, out, lse of that call."""
        if self.bias is not None and band.bias is not None and distance is not None:
            grad, q, k, v, out, lse = parts
            band.bias.add_gradient(self.bias, distance, score_gradient(q, k, v, out, lse, grad, mask, band.scale))


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
