"""The path ``cpu-distances``: a band and global tokens whose scores have a term of the query and the distance, by PyTorch's fused kernel
for the CPU.

With w = left + right + 1 keys in the band of a query, a block of n queries has the products M = p·rᵀ ``(n, w)`` of its vectors p with the
rows r of the distances. Row i of M holds the terms of the keys i, …, i + w - 1 of the block's slice. Stored in rows of w + n numbers, the
last n of which hide pairs, and read in rows of w + n - 1, it is the block's additive mask ``(n, n + w - 1)``: each row begins one number
later than the row before. So the mask is a view, and takes the memory of the products of one call's blocks. The backward pass writes the
gradients of the scores in rows of w + n - 1, and reads those of M in rows of w + n.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...naming import OPERATORS
from ..common.derivatives import first_derivatives_only, one_gradient_at_a_time
from .band import BandSettings, Group, Item, column_calls, groups, items, row_mask
from .flash import MASKED, MAX_PLAIN_KEYS, empty_results, few_keys, flash, merge_into, score_gradient, token_major

QUERIES_PER_BLOCK, QUERIES_PER_CALL = 64, 512
"""Blocks of 64 queries are the fastest of 32 to 256 with windows of 256 keys; more queries in a call are no faster."""
PAIRS_PER_COLUMN_CALL = 4096
"""Pairs of a query and a global column at most in one call, each of which takes a row of the table."""


class _Terms(NamedTuple):
    """The rows of distances that the blocks of a group need, and where the masks of the blocks begin."""

    group: Group
    first: int
    """The first of the rows, of all in the order of keys."""
    rows: int
    """How many they are."""
    skipped: int
    """Numbers between the beginning of a block's products and its mask."""

    @classmethod
    def of(cls, group: Group, shift: int, left: int, right: int) -> _Terms:
        """Of a group of the queries that begin at position ``shift`` of the keys."""
        before = left - (group.first + shift - group.start)  # rows before that of the first pair
        first = max(0, before - group.block + 1)
        return cls(group, first, min(left + right + 1, before + group.width) - first, before - first)

    def new(self, like: Tensor, blocks: int, beyond: float) -> Tensor:
        """Stored rows ``(H, blocks, block, rows + block)`` for queries ``like (H, …)``: places for the terms, and ``beyond`` in as many
        numbers after them as there are queries."""
        stored = like.new_empty(like.shape[0], blocks, self.group.block, self.rows + self.group.block)
        stored[..., self.rows :] = beyond
        return stored

    def table(self, rows: Tensor) -> Tensor:
        """These of ``rows (H or 1, w, F)``."""
        return rows[:, self.first : self.first + self.rows]

    def add_products(self, stored: Tensor, p: Tensor, rows: Tensor) -> None:
        """Fill the terms of stored rows by those of queries ``p (H, blocks * block, F)``."""
        torch.bmm(p, self.table(rows).mT, out=stored.flatten(1, 2)[..., : self.rows])

    def pairs(self, stored: Tensor) -> Tensor:
        """The pairs ``(blocks, H, block, width)`` of stored rows, a view."""
        heads, blocks, block, _ = stored.shape
        of_head, of_block, row, _ = stored.stride()
        return stored.as_strided((blocks, heads, block, self.group.width), (of_block, of_head, row - 1, 1), self.skipped)


def _items(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, global_mask: Tensor | None) -> Iterator[Item]:
    return items(q, k, v, key_mask, global_mask, lambda item: item.q_len > QUERIES_PER_BLOCK)


def _groups(item: Item, left: int, right: int) -> Iterator[Group]:
    return groups(item.q_len, item.kv_len, item.shift, left, right, QUERIES_PER_BLOCK)


def _queries_by_head(group: Group, x: Tensor) -> Tensor:
    """The queries of a group, of ``x (b, H, Nq, F)``, as ``(H, queries of all blocks, F)``."""
    queries = x.narrow(2, group.first, group.blocks * group.block)
    return queries[0] if len(x) == 1 else queries.transpose(0, 1).flatten(1, 2)


def _rows_in_band(table: Tensor, ahead: int, left: int, right: int) -> tuple[Tensor, Tensor]:
    """The rows of ``table (H or 1, W, F)`` in the order of keys, for the distances ``left, …, -right``, and where they are in it."""
    index = (torch.arange(left, -right - 1, -1) + ahead).clamp(0, table.shape[1] - 1)
    return table[:, index], index


def distances_forward(
    q: Tensor, k: Tensor, v: Tensor, p: Tensor, table: Tensor, key_mask: Tensor | None, global_mask: Tensor | None,
    ahead: int, left: int, right: int, causal: bool, global_rows: bool, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention over ``i - left … i + right`` and global tokens with a term p_i · r_{i-j} added to the scaled scores.

    Args:
        q, k, v: ``(B, H, Nq, D)``, ``(B, H, Nk, D)``; the queries are the last Nq positions.
        p: ``(B, H, Nq, F)``, in fp32 (in float64 with q).
        table: r, ``(H or 1, W, F)``, for the distances ``-ahead … W - 1 - ahead``, in p's dtype; those beyond have the first or the last.
        key_mask: ``(B, Nk)`` bool, True = real token, or None.
        global_mask: ``(B, Nk)`` bool, or None: the keys that every query sees.
        global_rows: whether the global tokens also see every key.
    Returns:
        output ``(B, H, Nq, D)``, stored token-major, and log-sum-exp ``(B, H, Nq)``.
    """
    out, lse = empty_results(q)
    band = BandSettings.of(lse.dtype, None, 0, left, right, causal, global_rows, scale)
    if key_mask is not None:
        out.zero_()
        lse.zero_()
    table = table.expand(p.shape[1], -1, -1)
    rows, _ = _rows_in_band(table, ahead, left, right)
    for item in _items(q, k, v, key_mask, global_mask):
        of_item, of_p = (out[item.by_query], lse[item.by_query]), p[item.by_query]
        for whole_group in _groups(item, left, right):
            stored: Tensor | None = None
            for group in whole_group.parts(QUERIES_PER_CALL // QUERIES_PER_BLOCK):
                terms, blocks = _Terms.of(group, item.shift, left, right), max(group.blocks, len(of_p))
                if stored is None or stored.shape[1] != blocks:
                    stored = terms.new(of_p[0], blocks, MASKED)
                terms.add_products(stored, _queries_by_head(group, of_p), rows)
                mask = terms.pairs(stored)
                mask = mask if item.hole is None else mask + group.keys(item.hole)[:, :, None]
                parts = flash(group.queries(item.q), group.keys(item.k), group.keys(item.v), attn_mask=mask, scale=scale)
                for result, part in zip(of_item, parts, strict=True):
                    group.queries(result).copy_(part)
        if item.globals is not None:
            for far in _far_calls(item, item.globals, band):
                queries, keys, values = far.queries(item.q), far.keys(item.k), far.keys(item.v)
                mask = far.mask(far.terms(far.queries(of_p), table, ahead))
                if not far.alone and keys.shape[2] <= MAX_PLAIN_KEYS:
                    parts = few_keys(queries, keys, values, mask, scale)
                else:
                    parts = flash(queries, keys, values, attn_mask=mask, scale=scale)
                if not far.alone:
                    merge_into(*(far.queries(result) for result in of_item), *parts)
                    continue
                for result, part in zip(of_item, parts, strict=True):
                    far.write(result, part)
        if item.hole is not None:
            of_item[0].masked_fill_(item.padding_rows(item.hole), 0)
    return out, lse


class _FarCall(NamedTuple):
    """A call for global tokens, whose distances to other tokens are any: queries over the global columns, or global rows over all keys."""

    rows: Tensor | slice
    """Its queries: a stretch, or the global rows."""
    columns: Tensor | None
    """Its keys: the global columns; ``None`` for all."""
    distance: Tensor
    """``(queries, keys)``."""
    visible: Tensor | None
    """Additive mask ``(1, 1, queries or 1, keys)``."""

    @property
    def alone(self) -> bool:
        """Whether its queries see nothing else."""
        return self.columns is None

    def queries(self, x: Tensor) -> Tensor:
        """Its queries of ``x (b, H, Nq, …)``."""
        return x[:, :, self.rows]

    def keys(self, x: Tensor) -> Tensor:
        """Its keys of ``x (b, H, Nk, …)``."""
        return x if self.columns is None else x[:, :, self.columns]

    def write(self, x: Tensor, values: Tensor) -> None:
        """Set its queries of ``x (b, H, Nq, …)``."""
        x[:, :, self.rows] = values

    def add_to_queries(self, total: Tensor, values: Tensor) -> None:
        total[:, :, self.rows] += values

    def add_to_keys(self, total: Tensor, values: Tensor) -> None:
        if self.columns is None:
            total.add_(values)
        else:
            total.index_add_(2, self.columns, values)

    def mask(self, terms: Tensor) -> Tensor:
        """The additive mask of pairs with these terms."""
        return terms if self.visible is None else terms + self.visible

    def _index(self, table: Tensor, ahead: int) -> Tensor:
        return (self.distance + ahead).clamp(0, table.shape[1] - 1)

    def terms(self, p: Tensor, table: Tensor, ahead: int) -> Tensor:
        """p_i · r_{i-j}, ``(b, H, queries, keys)``, of ``p (b, H, queries, F)`` with ``table (H, W, F)``."""
        index = self._index(table, ahead)
        if self.columns is None:  # few queries, whose products with the whole table are fewer numbers than the rows of all keys
            return (p @ table.mT).gather(-1, index.expand(*p.shape[:2], -1, -1))
        return (table[:, index] @ p[..., None])[..., 0]

    def terms_backward(self, of_scores: Tensor, p: Tensor, table: Tensor, ahead: int, dtable: Tensor) -> Tensor:
        """The gradient of p for that of the scores ``(b, H, queries, keys)``; that of the table is added to ``dtable``."""
        index = self._index(table, ahead)
        if self.columns is None:
            of_products = of_scores.new_zeros(*p.shape[:3], table.shape[1]).scatter_add_(-1, index.expand_as(of_scores), of_scores)
            dtable.add_((of_products.mT @ p).sum(0))
            return of_products @ table
        dtable.index_add_(1, index.flatten(), (of_scores[..., None] * p[..., None, :]).sum(0).flatten(1, 2))
        return (of_scores[..., None, :] @ table[:, index])[..., 0, :]


def _far_calls(item: Item, columns: Tensor, band: BandSettings) -> Iterator[_FarCall]:
    """The calls for global tokens, those of the global rows last."""
    step = max(1, PAIRS_PER_COLUMN_CALL // len(columns))
    for first, last, mask, _ in column_calls(item, columns, band):
        for start in range(first, last, step):
            stop = min(last, start + step)
            distance = torch.arange(start, stop)[:, None] + item.shift - columns
            yield _FarCall(slice(start, stop), columns, distance, None if mask is None else mask[:, :, start - first : stop - first])
    rows = item.global_rows()
    if band.global_rows and len(rows):
        mask, distance = row_mask(item, rows, band)
        yield _FarCall(rows, None, distance, mask)


cpu_distances = torch.library.custom_op(f"{OPERATORS}::cpu_distances", distances_forward, mutates_args=(), device_types="cpu")


class _BackwardState(NamedTuple):
    """What the backward pass of one sequence reads, and where it adds gradients up, in the dtype of the products.

    Of distances, ``(H, w, F)``: rows and drows. Of queries, ``(H, Nq, …)``: grad, the gradients g of the outputs o; q, p; lse and sums
    ``(H, Nq, 1)``, the log-sum-exps and g·o; dq, dp. Of keys, ``(H, Nk, …)``: hole ``(1, 1, Nk)``, k, v; dk, dv.
    """

    rows: Tensor
    drows: Tensor
    hole: Tensor | None
    grad: Tensor
    q: Tensor
    p: Tensor
    lse: Tensor
    sums: Tensor
    k: Tensor
    v: Tensor
    dq: Tensor
    dp: Tensor
    dk: Tensor
    dv: Tensor

    def add_block(self, terms: _Terms, scale: float, scores: Tensor, of_scores: Tensor) -> None:
        """The gradients of one block. Products write where they are read: scores to the terms, their gradients to those of the terms.

        Args:
            scores, of_scores: stored rows ``(H, 1, block, …)``; those of gradients are zeros wherever no pair is.
        """
        group = terms.group
        queries, keys = slice(group.first, group.first + group.block), slice(group.start, group.start + group.width)
        grad, q, p, lse, sums = (x[:, queries] for x in (self.grad, self.q, self.p, self.lse, self.sums))
        k, v, rows = self.k[:, keys], self.v[:, keys], terms.table(self.rows)
        terms.add_products(scores, p, self.rows)
        of_pairs = terms.pairs(scores)[0].baddbmm_(q, k.mT, alpha=scale)
        if self.hole is not None:
            of_pairs = of_pairs + self.hole[..., keys]
        weights = (of_pairs - lse).exp_()
        gradient = torch.mul((grad @ v.mT).sub_(sums), weights, out=terms.pairs(of_scores)[0])
        of_terms = of_scores[:, 0, :, : terms.rows]
        self.dv[:, keys].baddbmm_(weights.mT, grad)
        self.dk[:, keys].baddbmm_(gradient.mT, q, alpha=scale)
        self.dq[:, queries].baddbmm_(gradient, k, alpha=scale)
        self.dp[:, queries].baddbmm_(of_terms, rows)
        terms.table(self.drows).baddbmm_(of_terms.mT, p)


@torch.library.custom_op(f"{OPERATORS}::cpu_distances_backward", mutates_args=(), device_types="cpu")
def cpu_distances_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor, table: Tensor, out: Tensor, lse: Tensor, key_mask: Tensor | None,
    global_mask: Tensor | None, ahead: int, left: int, right: int, causal: bool, global_rows: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of :func:`cpu_distances` with respect to q, k, v, p and the table, in time and memory linear in the number of tokens."""
    dtype = lse.dtype
    band = BandSettings.of(dtype, None, 0, left, right, causal, global_rows, scale)
    dq, dk, dv, dp = (x.zero_() for x in (*token_major(dtype, q, k, v), *token_major(p.dtype, p)))
    by_head = table.expand(p.shape[1], -1, -1)
    rows, index = _rows_in_band(by_head, ahead, left, right)
    dtable, drows = table.new_zeros(by_head.shape), table.new_zeros(rows.shape)
    for item in _items(q, k, v, key_mask, global_mask):
        queries, keys = item.by_query, item.by_key
        of_out = grad[queries].to(dtype)
        of_out = of_out if item.hole is None else of_out.masked_fill(item.padding_rows(item.hole), 0)
        by_query = item.q.to(dtype), p[queries]
        by_key = item.k.to(dtype), item.v.to(dtype)
        gradients = dq[queries], dp[queries], dk[keys], dv[keys]
        results = out[queries], lse[queries]
        for far in [] if item.globals is None else list(_far_calls(item, item.globals, band))[::-1]:  # the global rows first
            _far_backward(far, by_head, ahead, scale, (of_out, *results, *by_query), by_key, gradients, dtable)
            if far.alone:  # no other call computed their outputs
                of_out = of_out.clone()
                far.write(of_out, of_out.new_zeros(()))
        sums = (of_out * results[0]).sum(-1, keepdim=True)
        tensors = of_out, *by_query, results[1][..., None], sums, *by_key
        hole = None if item.hole is None else item.hole[0]
        for row in range(len(item.q)):
            state = _BackwardState(rows, drows, hole, *(x[row] for x in (*tensors, *gradients)))
            for group in _groups(item, left, right):
                terms = _Terms.of(group, item.shift, left, right)
                scores, of_scores = terms.new(state.p, 1, MASKED), terms.new(state.p, 1, 0.0).zero_()
                for block in group.parts(1):
                    state.add_block(terms._replace(group=block), scale, scores, of_scores)
    dtable.index_add_(1, index, drows)
    dtable = dtable if len(table) == len(dtable) else dtable.sum(0, keepdim=True)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dp, dtable


def _far_backward(
    far: _FarCall, table: Tensor, ahead: int, scale: float, by_query: tuple[Tensor, ...], by_key: tuple[Tensor, Tensor],
    gradients: tuple[Tensor, ...], dtable: Tensor,
) -> None:  # fmt: skip
    """Add the gradients of a call for global tokens.

    Args:
        by_query: the gradients of the outputs, the outputs, their log-sum-exps, q and p.
        by_key: k and v.
        gradients: where those of q, p, k and v are added up.
    """
    grad, out, lse, q, p = (far.queries(x) for x in by_query)
    k, v = (far.keys(x) for x in by_key)
    dq, dp, dk, dv = gradients
    of_scores, weights = score_gradient(far.mask(far.terms(p, table, ahead)), scale, grad, q, k, v, out, lse)
    far.add_to_queries(dp, far.terms_backward(of_scores, p, table, ahead, dtable))
    far.add_to_keys(dv, weights.mT @ grad)
    of_scores = of_scores.mul_(scale)
    far.add_to_queries(dq, of_scores @ k)
    far.add_to_keys(dk, of_scores.mT @ q)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, p, table, key_mask, global_mask, *ctx.settings = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, p, table, *output, key_mask, global_mask)


@one_gradient_at_a_time()
def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradients = cpu_distances_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return first_derivatives_only((*gradients, None, None, *[None] * len(ctx.settings)))


cpu_distances.register_fake(lambda q, *_, **__: empty_results(q))
cpu_distances_backward.register_fake(
    lambda _grad, q, k, v, p, table, *_: (*token_major(q.dtype, q, k, v), *token_major(p.dtype, p), table.new_empty(table.shape))
)
cpu_distances.register_autograd(_backward, setup_context=_setup_context)
