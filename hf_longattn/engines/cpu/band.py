"""The path ``cpu-band``: a band and global tokens by PyTorch's fused kernel for the CPU.

The queries are cut into blocks. The keys of one block are one contiguous slice, so the slices of all blocks are a strided *view* of the
keys (``as_strided``, no copy), and one call of the kernel runs all of them. Global columns and rows are further calls on gathered tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...naming import OPERATORS
from ..common.byte_cache import BYTE_CACHE
from ..common.call import DistanceBias, Pattern
from ..common.dense import products
from ..common.derivatives import first_derivatives_only, one_gradient_at_a_time
from .band_plan import Group, Plan, band_plan
from .dense_mask import visible_mask
from .flash import additive_mask, empty_results, flash, flash_backward, mask_dtype, merge_into, token_major

COLUMN_BLOCK, COLUMN_CALL_QUERIES = 32, 512
"""Query rows that need the global columns are found in blocks of the first number; the second is the most in one call."""
MAX_PLAIN_COLUMNS = 8
"""Up to this many global columns, plain operations take less time than the kernel, which is made for many keys."""

Mask = TypeVar("Mask", Tensor, Tensor | None)


def band_mask(block: int, left: int, right: int, dtype: torch.dtype) -> Tensor:
    """Additive mask ``(1, 1, block, block + left + right)`` of a band, for a block whose first query is at index ``left`` of its keys.

    The masks of slices at the edges, which have many widths, are views of it. Shared, so read-only.
    """

    def make() -> Tensor:
        distance = torch.arange(block)[:, None] + left - torch.arange(block + left + right)
        return additive_mask((distance > left) | (distance < -right), dtype)[None, None]

    return BYTE_CACHE.get(("band", block, left, right, dtype), make)


def block_mask(group: Group, shift: int, left: int, right: int, block: int, dtype: torch.dtype) -> Tensor | None:
    """The part of :func:`band_mask` for a group of blocks of up to ``block`` queries, ``(1, 1, size, width)``; ``None`` where it hides
    nothing. The first of all queries is at position ``shift`` of the keys."""
    first = group.first + shift - group.start
    if group.sees_all(first, left, right):
        return None
    return band_mask(block, left, right, dtype)[:, :, : group.block, left - first : left - first + group.width]


class _BandSettings(NamedTuple):
    """The settings of one call: which keys a query sees, and the factor on q·k."""

    bias: DistanceBias | None
    left: int
    right: int
    causal: bool
    global_rows: bool
    scale: float

    @classmethod
    def of(cls, dtype: torch.dtype, bias: Tensor | None, ahead: int, *settings: Any) -> _BandSettings:
        return cls(None if bias is None else DistanceBias(bias.to(dtype), ahead), *settings)

    @property
    def pattern(self) -> Pattern:
        return Pattern(self.left, self.right, self.causal, True, self.global_rows)

    def add_bias(self, mask: Mask, distance: Tensor | None) -> Mask | Tensor:
        """``mask`` with the bias at these distances ``(rows, columns)`` of query and key."""
        if self.bias is None or distance is None:
            return mask
        bias = self.bias.over(distance)[None]
        return bias if mask is None else mask + bias


class _Item(NamedTuple):
    """Rows of the batch that run together, all or one, without their outer padding; every tensor is a view ``(b, H, tokens, …)``."""

    by_query: tuple[slice, slice, slice]
    """Index of its queries in the batch's tensors."""
    by_key: tuple[slice, slice, slice]
    shift: int
    """Position of the first query within the kept keys."""
    hole: Tensor | None
    """Additive mask ``(1, 1, Nk)`` of padding inside the kept keys, if any."""
    globals: Tensor | None
    """Positions of the global tokens within the kept keys, if any."""
    q: Tensor
    k: Tensor
    v: Tensor

    @property
    def q_len(self) -> int:
        return self.q.shape[2]

    @property
    def kv_len(self) -> int:
        return self.k.shape[2]

    def causal(self, band: _BandSettings, plan: Plan) -> bool:
        """Whether the kernel may leave out what is after a query by itself, besides what the mask hides."""
        return plan.dense and band.causal and self.shift == 0

    def padding_rows(self) -> Tensor | None:
        """Which queries are padding between real tokens, ``(1, 1, Nq, 1)``."""
        return None if self.hole is None else (self.hole[..., self.shift : self.shift + self.q_len] != 0)[..., None]

    def global_rows(self) -> Tensor:
        """The queries that are global tokens."""
        assert self.globals is not None
        rows = self.globals - self.shift
        return rows[(rows >= 0) & (rows < self.q_len)]


def _items(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, global_mask: Tensor | None, band: _BandSettings, backward: bool = False
) -> Iterator[_Item]:
    """The batch without its outer padding; rows without a real token are skipped (their outputs are zeros)."""
    everything, kv_len, earlier = slice(None), k.shape[2], k.shape[2] - q.shape[2]
    if key_mask is None and global_mask is None:
        index = (everything, everything, everything)
        item = _Item(by_query=index, by_key=index, shift=earlier, hole=None, globals=None, q=q, k=k, v=v)
        if len(q) == 1 or not any(group.blocks > 1 for group in _plan(item, band, backward).groups):
            yield item
            return
    for row in range(q.shape[0]):
        start, stop, hole, at = 0, kv_len, None, slice(row, row + 1)
        if key_mask is not None:
            real = key_mask[row].nonzero()
            if not len(real):
                continue
            start, stop = int(real[0]), int(real[-1]) + 1
            if len(real) != stop - start:
                hole = additive_mask(~key_mask[row, start:stop], mask_dtype(q))[None, None]
        first = max(start, earlier)
        if first >= stop:
            continue
        chosen = None if global_mask is None else global_mask[row, start:stop].nonzero()[:, 0]
        columns = chosen if chosen is not None and len(chosen) else None
        by_query, by_key = (at, everything, slice(first - earlier, stop - earlier)), (at, everything, slice(start, stop))
        yield _Item(by_query, by_key, first - start, hole, columns, q[by_query], k[by_key], v[by_key])


BandCall = tuple[Group, Tensor | None, Tensor | None]
"""Blocks of one call of the kernel, their mask and, for a bias, their distances."""


def _band_calls(item: _Item, band: _BandSettings, plan: Plan) -> Sequence[BandCall]:
    """The band as calls of the kernel."""
    index, dtype = item.globals if plan.dense else None, mask_dtype(item.q)
    if plan.dense:
        masks: Sequence[Tensor | None] = [visible_mask(item.q_len, item.kv_len, item.shift, band.pattern, index, dtype)]
    else:
        key = ("masks of blocks", item.q_len, item.kv_len, item.shift, band.left, band.right, plan.block, dtype)
        masks = BYTE_CACHE.get(
            key, lambda: [block_mask(group, item.shift, band.left, band.right, plan.block, dtype) for group in plan.groups]
        )
    if item.hole is None and band.bias is None:
        return [(part, mask, None) for group, mask in zip(plan.groups, masks, strict=True) for part in plan.calls(group)]
    calls: list[BandCall] = []
    for group, mask in zip(plan.groups, masks, strict=True):
        distance = None
        if band.bias is not None:
            first = group.first + item.shift - group.start
            distance = torch.arange(group.block)[:, None] + first - torch.arange(group.width)[None, :]
            mask = band.add_bias(mask, distance)
        for part in plan.calls(group):
            hole = None if item.hole is None else part.keys(item.hole)[:, :, None]
            calls.append((part, mask if hole is None else hole if mask is None else mask + hole, distance))
    return calls


def _plan(item: _Item, band: _BandSettings, backward: bool = False) -> Plan:
    sizes = (item.q_len, item.kv_len, item.shift, band.left, band.right)
    return band_plan(*sizes, item.q.dtype, torch.get_num_threads(), backward=backward, tokens=item.globals is not None)


ColumnCall = tuple[int, int, Tensor | None, Tensor | None]
"""First query row, last one + 1, mask and, for a bias, distances of a call over the global columns."""


def _column_calls(item: _Item, columns: Tensor, band: _BandSettings) -> Sequence[ColumnCall]:
    """Stretches of query rows that need the global columns.

    Far from every global token no pair is hidden and no mask is needed; where the band covers all columns there is nothing to do.
    """
    key = ("columns", item.q_len, item.shift, band.pattern, band.bias is None, tuple(columns.tolist()), mask_dtype(item.q))
    calls = BYTE_CACHE.get(key, lambda: list(_find_column_calls(item, columns, band)))
    if band.bias is None:
        return calls
    return [(first, last, band.add_bias(mask, distance), distance) for first, last, mask, distance in calls]


def _find_column_calls(item: _Item, columns: Tensor, band: _BandSettings) -> Iterator[ColumnCall]:
    """:func:`_column_calls` with distances, and without the bias."""
    q_len, left, right = item.q_len, band.left, band.right
    start = torch.arange(0, q_len, COLUMN_BLOCK)[:, None] + item.shift
    stop = (start + COLUMN_BLOCK).clamp(max=q_len + item.shift) - 1
    any_inside, all_inside = start - columns <= left, stop - columns <= left
    if not band.causal:
        any_inside &= columns - stop <= right
        all_inside &= columns - start <= right
    row = 0
    hidden_pairs = any_inside.any(1).int() + all_inside.all(1).int()  # none, some or all of a block's pairs
    for hidden, blocks in itertools.groupby(hidden_pairs.tolist()):
        end = min(q_len, row + COLUMN_BLOCK * len(list(blocks)))
        for first in range(row, end, COLUMN_CALL_QUERIES) if hidden != 2 else ():
            last, mask, distance = min(first + COLUMN_CALL_QUERIES, end), None, None
            if hidden or band.bias is not None:
                distance = torch.arange(first, last)[:, None] + item.shift - columns[None, :]
            if hidden and distance is not None:
                inside = distance <= left if band.causal else (distance <= left) & (distance >= -right)
                mask = additive_mask(inside, mask_dtype(item.q))[None, None]
            yield first, last, mask, distance
        row = end


def _row_mask(item: _Item, rows: Tensor, band: _BandSettings) -> tuple[Tensor | None, Tensor]:
    """Mask and distances of global query rows, which see every key but those in holes and, when causal, the future."""
    distance = (rows + item.shift)[:, None] - torch.arange(item.kv_len)[None]
    mask = None if item.hole is None else item.hole[:, :, None]
    if band.causal:
        ahead = additive_mask(distance < 0, mask_dtype(item.q))[None, None]
        mask = ahead if mask is None else mask + ahead
    return band.add_bias(mask, distance), distance


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Tokens of ``x (b, H, N, …)`` as ``(b, H, g, …)``."""
    return x.index_select(2, index)


def _few_columns(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Output ``(b, H, n, D)`` and log-sum-exp of n queries over a few keys ``(b, H, g, D)``."""
    scores = products(q, k).mul_(scale)
    scores = scores if mask is None else scores.add_(mask)
    lse = scores.logsumexp(-1)
    if k.shape[2] == 1:
        return v.expand_as(q), lse
    return scores.sub_(lse[..., None]).exp_().to(v.dtype) @ v, lse


def _doubled(*tensors: Tensor) -> tuple[Tensor, ...]:
    """``(b, H, 1, …)`` with the row twice: in half precision the kernel takes several times as long for one as for two."""
    return tuple(torch.cat([x, x], 2) for x in tensors)


def _is_doubled(q: Tensor) -> bool:
    """Whether ``q (b, H, n, D)`` is one row that is to be doubled."""
    return q.shape[2] == 1 and q.element_size() < 4


def band_forward(
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
    band = _BandSettings.of(mask_dtype(q), bias, ahead, left, right, causal, global_rows, scale)
    out, lse = empty_results(q)
    if key_mask is not None:
        out.zero_()
        lse.zero_()
    for item in _items(q, k, v, key_mask, global_mask, band):
        plan = _plan(item, band)
        of_item = out[item.by_query], lse[item.by_query]
        for g, mask, _ in _band_calls(item, band, plan):
            inputs = g.queries(item.q), g.keys(item.k), g.keys(item.v)
            parts = flash(*inputs, 0.0, item.causal(band, plan), attn_mask=mask, scale=scale)
            if plan.dense and item.hole is None and parts[0].shape == out.shape and parts[0].stride() == out.stride():
                return parts  # nothing else writes to the results
            for result, part in zip(of_item, parts, strict=True):
                g.queries(result).copy_(part)
        if item.globals is not None and not plan.dense:
            _globals_forward(item, item.globals, band, *of_item)
        padding = item.padding_rows()
        if padding is not None:
            of_item[0].masked_fill_(padding, 0)
    return out, lse


def _globals_forward(item: _Item, columns: Tensor, band: _BandSettings, out: Tensor, lse: Tensor) -> None:
    """Merge the global keys outside the band into the item's ``out`` and ``lse``, and overwrite the rows of the global queries."""
    keys, values = _take(item.k, columns), _take(item.v, columns)
    for first, last, mask, _ in _column_calls(item, columns, band):
        queries, of_out, of_lse = (x[:, :, first:last] for x in (item.q, out, lse))
        if len(columns) <= MAX_PLAIN_COLUMNS:
            merge_into(of_out, of_lse, *_few_columns(queries, keys, values, mask, band.scale))
        else:
            merge_into(of_out, of_lse, *flash(queries, keys, values, attn_mask=mask, scale=band.scale))
    rows = item.global_rows()
    if band.global_rows and len(rows):
        mask, _ = _row_mask(item, rows, band)
        queries = _take(item.q, rows)
        if _is_doubled(queries):
            (queries,), mask = _doubled(queries), None if mask is None else mask.expand(-1, -1, 2, -1)
        for result, part in zip((out, lse), flash(queries, item.k, item.v, attn_mask=mask, scale=band.scale), strict=True):
            result.index_copy_(2, rows, part[:, :, : len(rows)])


cpu_band = torch.library.custom_op(f"{OPERATORS}::cpu_band", band_forward, mutates_args=(), device_types="cpu")


Gradients = tuple[Tensor, Tensor, Tensor]
"""The gradients of q, k and v."""


class _BackwardState(NamedTuple):
    """The gradient and the results of one item's forward pass, and where gradients are added up; views ``(b, H, tokens, …)``."""

    grad: Tensor
    out: Tensor
    lse: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor
    dbias: Tensor | None
    """Gradient of the whole table, ``(H, distances)``; ``None`` where it is not needed."""

    def gradients_of_call(
        self, band: _BandSettings, inputs: tuple[Tensor, ...], mask: Tensor | None, distance: Tensor | None, causal: bool = False
    ) -> Gradients:
        """The gradients of q, k, v of one call on ``inputs``, its grad, q, k, v, out, lse; that of the bias is added here."""
        if self.dbias is not None and band.bias is not None and distance is not None:
            of_scores, _ = score_gradient(mask, band.scale, *inputs)
            band.bias.add_gradient(self.dbias, distance, of_scores.sum(0))
        grad, q, k, v, out, lse = inputs
        if k.shape[2] <= MAX_PLAIN_COLUMNS:
            return _few_columns_backward(mask, band.scale, *inputs)
        if doubled := _is_doubled(q):  # the second one has no gradient
            grad, (q, out, lse) = F.pad(grad, (0, 0, 0, 1)), _doubled(q, out, lse)
            mask = None if mask is None else mask.expand(-1, -1, 2, -1)
        dq, dk, dv = flash_backward(grad, q, k, v, out, lse, 0.0, causal, attn_mask=mask, scale=band.scale)
        return dq[:, :, :1] if doubled else dq, dk, dv


def _few_columns_backward(mask: Tensor | None, scale: float, grad: Tensor, q: Tensor, k: Tensor, *rest: Tensor) -> Gradients:
    """The gradients of q, k, v of n queries over a few keys."""
    of_scores, weights = score_gradient(mask, scale, grad, q, k, *rest)
    of_scores, dtype = of_scores.mul_(scale), weights.dtype
    dk, dv = of_scores.transpose(-1, -2) @ q.to(dtype), weights.transpose(-1, -2) @ grad.to(dtype)
    return (of_scores @ k.to(dtype)).to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)


def score_gradient(
    mask: Tensor | None, scale: float, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient of the scores of ``softmax(q·k·scale + mask)·v``, and the weights, both ``(n, H, rows, columns)``.

    grad, q, out ``(n, H, rows, D)``, k, v ``(n, H, columns, D)``, lse ``(n, H, rows)``: of the whole softmax, of which this may be a part.
    """
    grad, q, k, v, out = (x.to(lse.dtype) for x in (grad, q, k, v, out))
    scores = (q @ k.transpose(-1, -2)).mul_(scale)
    if mask is not None:
        scores = scores.add_(mask)
    weights = scores.sub_(lse[..., None]).exp_()
    of_weights = (grad @ v.transpose(-1, -2)).sub_((grad * out).sum(-1, keepdim=True))
    return of_weights.mul_(weights), weights


@torch.library.custom_op(f"{OPERATORS}::cpu_band_backward", mutates_args=(), device_types="cpu")
def cpu_band_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, key_mask: Tensor | None, global_mask: Tensor | None,
    left: int, right: int, causal: bool, global_rows: bool, scale: float, bias: Tensor | None, ahead: int, of_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of :func:`cpu_band` with respect to q, k, v and, with ``of_bias``, the bias (otherwise empty), in time and memory linear
    in the number of tokens."""
    dbias = _like_bias(q, bias if of_bias else None).zero_()
    dq, dk, dv = token_major(q.dtype, q, k, v)
    band = _BandSettings.of(mask_dtype(q), bias, ahead, left, right, causal, global_rows, scale)
    for x in (dq, dk, dv):
        x.zero_()
    for item in _items(q, k, v, key_mask, global_mask, band, backward=True):
        at, keys = item.by_query, item.by_key
        into = _BackwardState(grad[at], out[at], lse[at], dq[at], dk[keys], dv[keys], dbias if of_bias else None)
        padding, plan = item.padding_rows(), _plan(item, band, backward=True)
        if padding is not None:
            into = into._replace(grad=into.grad.masked_fill(padding, 0))
        if item.globals is not None and not plan.dense:
            if global_rows:
                into = _rows_backward(item, item.global_rows(), band, into)
            _columns_backward(item, item.globals, band, into)
        for g, mask, distance in _band_calls(item, band, plan):
            of_out, of_q, of_k, of_v = g.queries(into.grad), g.queries(item.q), g.keys(item.k), g.keys(item.v)
            inputs = (of_out, of_q, of_k, of_v, g.queries(into.out), g.queries(into.lse))
            parts = into.gradients_of_call(band, inputs, mask, distance, item.causal(band, plan))
            if plan.dense and item.q.shape == q.shape and item.hole is None:  # nothing else adds to them
                return *parts, dbias
            g.queries(into.dq).add_(parts[0])
            g.add_to_keys(into.dk, parts[1])
            g.add_to_keys(into.dv, parts[2])
    return dq, dk, dv, dbias


def _rows_backward(item: _Item, rows: Tensor, band: _BandSettings, into: _BackwardState) -> _BackwardState:
    """The global rows; returned without the gradients of their outputs, since no other call computed these."""
    if not len(rows):
        return into
    mask, distance = _row_mask(item, rows, band)
    grad, queries, out, lse = (_take(x, rows) for x in (into.grad, item.q, into.out, into.lse))
    dq, dk, dv = into.gradients_of_call(band, (grad, queries, item.k, item.v, out, lse), mask, distance)
    into.dq.index_add_(2, rows, dq)
    into.dk.add_(dk)
    into.dv.add_(dv)
    return into._replace(grad=into.grad.index_fill(2, rows, 0))


def _columns_backward(item: _Item, columns: Tensor, band: _BandSettings, into: _BackwardState) -> None:
    keys, values = _take(item.k, columns), _take(item.v, columns)
    for first, last, mask, distance in _column_calls(item, columns, band):
        grad, queries, out, lse, dq = (x[:, :, first:last] for x in (into.grad, item.q, into.out, into.lse, into.dq))
        parts = into.gradients_of_call(band, (grad, queries, keys, values, out, lse), mask, distance)
        dq.add_(parts[0])
        into.dk.index_add_(2, columns, parts[1])
        into.dv.index_add_(2, columns, parts[2])


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
