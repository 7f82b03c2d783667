"""The path ``cpu-distances``: band and global tokens with distance terms, by PyTorch's fused CPU kernel.

A term depends on the distance and on the query or the key. The band of a query has w = left + right + 1 keys. A block of n queries has the
products M = p·rᵀ ``(n, w)`` of its vectors p with the rows r of the distances. Row i of M holds the terms of keys i, …, i + w - 1 of the
block's slice. M is stored in rows of w + n numbers, and the last n numbers of a row hide pairs. Read in rows of w + n - 1, the terms of
each row begin one number later than in the row before, and M is the block's additive mask ``(n, n + w - 1)``. So the mask is a view, and
only the products of one call's blocks take memory. The backward pass writes score gradients in rows of w + n - 1, and reads the gradients
of M in rows of w + n.

A term of the key and the distance has the products T = e·sᵀ ``(keys, w)`` of the vectors e of a call's keys with the rows s. Query i adds
to its row of M the diagonal of T that begins at row i. So T is read with stride w between queries and w + 1 within a row, and added to M.
The gradients of T are written through the same view.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...naming import OPERATORS
from ..common.context import DispatchContext
from ..common.derivatives import first_derivatives_only, one_gradient_at_a_time
from .band import BandSettings, Group, Item, column_calls, groups, items, row_mask
from .flash import MASKED, MAX_PLAIN_KEYS, empty_results, few_keys, flash, merge_into, score_gradient, token_major
from .flash import why_not as why_no_kernel

QUERIES_PER_BLOCK, QUERIES_PER_CALL = 64, 512
"""Queries per block, and maximum queries per call. With windows of 256 keys, 64 is fastest of 32 to 256; larger calls gain nothing."""
MAX_CHUNK_IN_A_BLOCK = 2 * QUERIES_PER_BLOCK
"""Maximum tokens of a chunk that is one block."""
PAIRS_PER_COLUMN_CALL = 4096
"""Maximum pairs of a query and a global token in one call. Each pair copies a row of the table."""


def why_not(context: DispatchContext) -> str | None:
    """Why this path does not run, as a clause. ``None`` if it may run."""
    if (why := why_no_kernel(context)) is not None:
        return why
    if "cpu-distances" in context.call.term.engines:
        return None
    return "the score term is not one of the distance and the query or the key"


class _Terms(NamedTuple):
    """The table rows that a group's blocks need, and where the masks of blocks begin."""

    group: Group
    first: int
    """Index of the first of these rows, among all rows in the order of keys."""
    rows: int
    """Number of these rows."""
    skipped: int
    """Numbers from the beginning of a block's stored rows to its mask."""

    @classmethod
    def of(cls, group: Group, shift: int, left: int, right: int) -> _Terms:
        """The rows for a group. The first of all queries is at key position ``shift``."""
        before = left - (group.first + shift - group.start)  # rows before the row of the first pair
        first = max(0, before - group.block + 1)
        return cls(group, first, min(left + right + 1, before + group.width) - first, before - first)

    def new(self, like: Tensor, blocks: int, beyond: float) -> Tensor:
        """New stored rows ``(H, blocks, block, rows + block)`` for queries ``like (H, …)``. A row has places for ``rows`` terms, and then
        ``beyond`` in ``block`` numbers."""
        stored = like.new_empty(like.shape[0], blocks, self.group.block, self.rows + self.group.block)
        stored[..., self.rows :] = beyond
        return stored

    def table(self, rows: Tensor) -> Tensor:
        """The needed rows of ``rows (H or 1, w, F)``."""
        return rows[:, self.first : self.first + self.rows]

    def add_products(self, stored: Tensor, p: Tensor, rows: Tensor) -> None:
        """Fill stored rows with the terms of queries ``p (H, blocks * block, F)``."""
        torch.bmm(p, self.table(rows).mT, out=stored.flatten(1, 2)[..., : self.rows])

    def new_by_key(self, like: Tensor) -> Tensor:
        """New places ``(B, H, keys, rows)`` for the terms of keys ``like (B, H, …)``. They include every key that a query of the group
        meets at these rows, also keys outside the slices. No pair reads those."""
        keys = self.group.blocks * self.group.block + self.rows - 1
        return like.new_empty(like.shape[0], like.shape[1], keys, self.rows)

    @property
    def keys(self) -> slice:
        """The keys of all slices."""
        return slice(self.group.start, self.group.start + (self.group.blocks - 1) * self.group.step + self.group.width)

    def inside(self, by_key: Tensor) -> Tensor:
        """The places of :attr:`keys` in a tensor of :meth:`new_by_key`."""
        return by_key.narrow(2, self.skipped, self.keys.stop - self.keys.start)

    def key_products(self, by_key: Tensor, e: Tensor, rows: Tensor) -> None:
        """Fill a tensor of :meth:`new_by_key` with the terms of keys ``e (B, H, Nk, G)``."""
        inside, of_slices = self.inside(by_key), e[:, :, self.keys]
        if len(e) == 1:
            torch.bmm(of_slices[0], self.table(rows).mT, out=inside[0])
        else:
            inside.copy_(of_slices @ self.table(rows).mT)

    def diagonals(self, by_key: Tensor) -> Tensor:
        """View of the key terms by query and row, ``(H, blocks, block, rows)``. With several batch rows, each is one block."""
        batch, heads, _, _ = by_key.shape
        of_item, of_head, key, _ = by_key.stride()
        blocks, step = (self.group.blocks, self.group.block * key) if batch == 1 else (batch, of_item)
        return by_key.as_strided((heads, blocks, self.group.block, self.rows), (of_head, step, key, key + 1))

    def pairs(self, stored: Tensor) -> Tensor:
        """View of stored rows as pairs, ``(blocks, H, block, width)``."""
        heads, blocks, block, _ = stored.shape
        of_head, of_block, row, _ = stored.stride()
        return stored.as_strided((blocks, heads, block, self.group.width), (of_block, of_head, row - 1, 1), self.skipped)


def _items(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, global_mask: Tensor | None, chunk: int) -> Iterator[Item]:
    block = min(chunk or QUERIES_PER_BLOCK, QUERIES_PER_BLOCK)
    return items(q, k, v, key_mask, global_mask, lambda item: item.q_len > block)


def _groups(item: Item, left: int, right: int, chunk: int) -> Iterator[Group]:
    """The blocks of a band or, with ``chunk``, of chunks of this many tokens."""
    if chunk:
        return chunk_groups(item.q_len, item.kv_len, item.shift, chunk, left + 1 - chunk, causal=right == 0)
    return groups(item.q_len, item.kv_len, item.shift, left, right, QUERIES_PER_BLOCK)


def chunk_groups(q_len: int, kv_len: int, shift: int, chunk: int, before: int, *, causal: bool) -> Iterator[Group]:
    """Cover all queries of chunks that see themselves and ``before`` earlier tokens. Small chunks form one group with all their keys. Other
    chunks, and chunks at the edges, are cut into blocks of :data:`QUERIES_PER_BLOCK`.

    Args:
        shift: position of the first query within the keys. The first chunk begins at key 0.
        causal: whether a query sees no later key, so that its block needs none.
    """
    first, last = -(-max(shift, before) // chunk), min(shift + q_len, kv_len) // chunk
    inner = range(first, last) if chunk <= MAX_CHUNK_IN_A_BLOCK else range(0)
    if inner:
        yield Group(inner.start * chunk - shift, len(inner), chunk, inner.start * chunk - before, chunk, before + chunk)
    for number in range(shift // chunk, -(-(shift + q_len) // chunk)):
        if number in inner:
            continue
        begin, end = max(shift, number * chunk), min(shift + q_len, (number + 1) * chunk)
        start, stop = max(0, number * chunk - before), min(kv_len, (number + 1) * chunk)
        for row in range(begin, end, QUERIES_PER_BLOCK):
            size = min(QUERIES_PER_BLOCK, end - row)
            width = (row + size if causal else stop) - start
            yield Group(row - shift, 1, size, start, width, width)


def _parts(group: Group) -> Iterator[Group]:
    return group.parts(max(1, QUERIES_PER_CALL // group.block))


def _queries_by_head(group: Group, x: Tensor) -> Tensor:
    """A group's queries in ``x (b, H, Nq, F)``, as ``(H, queries of all blocks, F)``."""
    queries = x.narrow(2, group.first, group.blocks * group.block)
    return queries[0] if len(x) == 1 else queries.transpose(0, 1).flatten(1, 2)


class _Tables(NamedTuple):
    """Every head's tables of distances: ``(H, W, F)`` for query terms, ``(H, W, G)`` for key terms."""

    of_queries: Tensor
    of_keys: Tensor | None
    buckets: Tensor | None
    ahead: int

    @classmethod
    def of(cls, heads: int, of_queries: Tensor, of_keys: Tensor | None, buckets: Tensor | None, ahead: int) -> _Tables:
        by_head = None if of_keys is None else of_keys.expand(heads, -1, -1)
        return cls(of_queries.expand(heads, -1, -1), by_head, buckets, ahead)

    def rows(self, distance: Tensor) -> Tensor:
        """The row of each distance."""
        if self.buckets is not None:
            return self.buckets[(distance + self.ahead).clamp(0, len(self.buckets) - 1)]
        return (distance + self.ahead).clamp(0, self.of_queries.shape[1] - 1)

    def in_band(self, left: int, right: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """Rows of both tables for the distances ``left, …, -right``, and their indices. This is the order of keys."""
        index = self.rows(torch.arange(left, -right - 1, -1))
        return self.of_queries[:, index], None if self.of_keys is None else self.of_keys[:, index], index


def distances_forward(
    q: Tensor, k: Tensor, v: Tensor, p: Tensor, table: Tensor, e: Tensor | None, key_table: Tensor | None, buckets: Tensor | None,
    key_mask: Tensor | None, global_mask: Tensor | None,
    ahead: int, left: int, right: int, causal: bool, global_rows: bool, chunk: int, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention over ``i - left … i + right`` and global tokens, with distance terms. The scaled scores get the terms
    p_i · r_{b(i-j)} + e_j · s_{b(i-j)}.

    Args:
        q, k, v: ``(B, H, Nq, D)``, ``(B, H, Nk, D)``; the queries are the last Nq positions.
        p: ``(B, H, Nq, F)``, in fp32 (in float64 with q).
        table: r, ``(H or 1, W, F)``, in p's dtype: rows for distances ``-ahead … W - 1 - ahead`` (beyond: the first or last) or buckets.
        e: ``(B, H, Nk, G)``, and key_table: s, ``(H or 1, W, G)``, in p's dtype; both None without terms of keys.
        buckets: b, int64, the row of both tables for each distance from ``-ahead`` on; None where each distance has its own row.
        key_mask: ``(B, Nk)`` bool, True = real token, or None.
        global_mask: ``(B, Nk)`` bool, or None: the keys that every query sees.
        global_rows: whether the global tokens also see every key.
        chunk: tokens per chunk, counted from the first key; 0 for a band. All queries of a chunk see the same keys: ``left`` is the reach
            of its last query, ``right`` of its first. A right of 0 hides later keys.
    Returns:
        output ``(B, H, Nq, D)``, stored token-major, and log-sum-exp ``(B, H, Nq)``.
    """
    out, lse = empty_results(q)
    band = BandSettings.of(lse.dtype, None, 0, left, right, causal, global_rows, scale)
    if key_mask is not None:
        out.zero_()
        lse.zero_()
    tables = _Tables.of(p.shape[1], table, key_table, buckets, ahead)
    rows, key_rows, _ = tables.in_band(left, right)
    for item in _items(q, k, v, key_mask, global_mask, chunk):
        of_item, of_p = (out[item.by_query], lse[item.by_query]), p[item.by_query]
        of_e = None if e is None else e[item.by_key]
        for blocks_of_a_kind in _groups(item, left, right, chunk):
            stored: Tensor | None = None
            by_key: Tensor | None = None
            for group in _parts(blocks_of_a_kind):
                terms, blocks = _Terms.of(group, item.shift, left, right), max(group.blocks, len(of_p))
                if stored is None or stored.shape[1] != blocks:
                    stored = terms.new(of_p[0], blocks, MASKED)
                    by_key = None if of_e is None else terms.new_by_key(of_e)
                terms.add_products(stored, _queries_by_head(group, of_p), rows)
                if of_e is not None and key_rows is not None and by_key is not None:
                    terms.key_products(by_key, of_e, key_rows)
                    stored[..., : terms.rows] += terms.diagonals(by_key)
                mask = terms.pairs(stored)
                mask = mask if item.hole is None else mask + group.keys(item.hole)[:, :, None]
                parts = flash(group.queries(item.q), group.keys(item.k), group.keys(item.v), attn_mask=mask, scale=scale)
                for result, part in zip(of_item, parts, strict=True):
                    group.queries(result).copy_(part)
        if item.globals is not None:
            for far in _far_calls(item, item.globals, band):
                queries, keys, values = far.queries(item.q), far.keys(item.k), far.keys(item.v)
                mask = far.mask(far.terms(far.queries(of_p), None if of_e is None else far.keys(of_e), tables))
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
    """A call for global tokens, at any distance. Either queries attend to the global columns, or global rows to all keys."""

    rows: Tensor | slice
    """Its queries: a slice, or the indices of the global rows."""
    columns: Tensor | None
    """Its keys: the indices of the global columns; ``None`` for all keys."""
    distance: Tensor
    """``(queries, keys)``."""
    visible: Tensor | None
    """Additive mask ``(1, 1, queries or 1, keys)``."""

    @property
    def alone(self) -> bool:
        """Whether its queries are in no other call."""
        return self.columns is None

    def queries(self, x: Tensor) -> Tensor:
        """The rows of ``x (b, H, Nq, …)`` that belong to this call's queries."""
        return x[:, :, self.rows]

    def keys(self, x: Tensor) -> Tensor:
        """The rows of ``x (b, H, Nk, …)`` that belong to this call's keys."""
        return x if self.columns is None else x[:, :, self.columns]

    def write(self, x: Tensor, values: Tensor) -> None:
        """Write ``values`` to the rows of ``x (b, H, Nq, …)`` that belong to this call's queries."""
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

    def terms(self, p: Tensor, e: Tensor | None, tables: _Tables) -> Tensor:
        """The terms ``(b, H, queries, keys)`` of ``p (b, H, queries, F)`` and ``e (b, H, keys, G)``.

        Few tokens are multiplied by all rows of a table, many tokens by the row of each pair.
        """
        index = tables.rows(self.distance)
        if self.alone:
            terms = _few_terms(p, tables.of_queries, index)
            if e is not None and tables.of_keys is not None:
                for keys in self._stretches():
                    terms[..., keys] += _many_terms(e[:, :, keys], tables.of_keys, index[:, keys].T).mT
            return terms
        terms = _many_terms(p, tables.of_queries, index)
        return terms if e is None or tables.of_keys is None else terms + _few_terms(e, tables.of_keys, index.T).mT

    def terms_backward(
        self, of_scores: Tensor, p: Tensor, e: Tensor | None, tables: _Tables, totals: _Tables
    ) -> tuple[Tensor, Tensor | None]:
        """The gradients of p and e, from score gradients ``(b, H, queries, keys)``. Table gradients are added to ``totals``."""
        index = tables.rows(self.distance)
        if e is None or tables.of_keys is None or totals.of_keys is None:
            backward = _few_backward if self.alone else _many_backward
            return backward(of_scores, p, tables.of_queries, index, totals.of_queries), None
        if not self.alone:
            de = _few_backward(of_scores.mT, e, tables.of_keys, index.T, totals.of_keys)
            return _many_backward(of_scores, p, tables.of_queries, index, totals.of_queries), de
        stretches = (
            _many_backward(of_scores[..., keys].mT, e[:, :, keys], tables.of_keys, index[:, keys].T, totals.of_keys)
            for keys in self._stretches()
        )
        return _few_backward(of_scores, p, tables.of_queries, index, totals.of_queries), torch.cat(list(stretches), 2)

    def _stretches(self) -> Iterator[slice]:
        """All keys, in slices of up to :data:`PAIRS_PER_COLUMN_CALL` pairs, since each pair copies a row."""
        queries, keys = self.distance.shape
        step = max(1, PAIRS_PER_COLUMN_CALL // queries)
        return (slice(start, min(start + step, keys)) for start in range(0, keys, step))


def _few_terms(x: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Products ``(b, H, n, m)`` of ``x (b, H, n, F)`` with rows ``index (n, m)`` of ``table (H, W, F)``, selected from all products."""
    return (x @ table.mT).gather(-1, index.expand(*x.shape[:2], -1, -1))


def _few_backward(of_terms: Tensor, x: Tensor, table: Tensor, index: Tensor, dtable: Tensor) -> Tensor:
    """The gradient of x in :func:`_few_terms`. The table's gradient is added to ``dtable``."""
    of_products = of_terms.new_zeros(*x.shape[:3], table.shape[1]).scatter_add_(-1, index.expand_as(of_terms), of_terms)
    dtable.add_((of_products.mT @ x).sum(0))
    return of_products @ table


def _many_terms(x: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """:func:`_few_terms` with a copied table row for each pair."""
    return (table[:, index] @ x[..., None])[..., 0]


def _many_backward(of_terms: Tensor, x: Tensor, table: Tensor, index: Tensor, dtable: Tensor) -> Tensor:
    """The gradient of x in :func:`_many_terms`. The table's gradient is added to ``dtable``."""
    dtable.index_add_(1, index.flatten(), (of_terms[..., None] * x[..., None, :]).sum(0).flatten(1, 2))
    return (of_terms[..., None, :] @ table[:, index])[..., 0, :]


def _far_calls(item: Item, columns: Tensor, band: BandSettings) -> Iterator[_FarCall]:
    """The calls for global tokens. The call of the global rows comes last."""
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
    """Inputs and gradient accumulators of one sequence's backward pass, in the dtype of the products.

    By distance, ``(H, w, F)``: rows, drows. By query, ``(H, Nq, …)``: grad, the gradients g of the outputs o; q, p, dq, dp; lse and sums
    ``(H, Nq, 1)``, the log-sum-exps and g·o. By key, ``(H, Nk, …)``: k, v, dk, dv; hole ``(1, 1, Nk)``.
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

    def add_block(self, terms: _Terms, scale: float, scores: Tensor, of_scores: Tensor, of_keys: tuple[Tensor, Tensor] | None) -> None:
        """Add the gradients of one block. Scores are written over their terms, and score gradients over the gradients of the terms.

        Args:
            scores, of_scores: stored rows ``(H, 1, block, …)``; ``of_scores`` must be zero wherever there is no pair.
            of_keys: the block's key terms ``(H, block, rows)``, and the accumulator of their gradients.
        """
        group = terms.group
        queries, keys = slice(group.first, group.first + group.block), slice(group.start, group.start + group.width)
        grad, q, p, lse, sums = (x[:, queries] for x in (self.grad, self.q, self.p, self.lse, self.sums))
        k, v, rows = self.k[:, keys], self.v[:, keys], terms.table(self.rows)
        terms.add_products(scores, p, self.rows)
        if of_keys is not None:
            scores[:, 0, :, : terms.rows] += of_keys[0]
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
        if of_keys is not None:
            of_keys[1].add_(of_terms)


class _KeyTerms(NamedTuple):
    """Key terms in one sequence's backward pass, with gradient accumulators. Inputs are ``e (1, H, Nk, G)`` and the rows of distances
    ``(H, w, G)``."""

    e: Tensor
    rows: Tensor
    de: Tensor
    drows: Tensor

    def of_group(self, terms: _Terms) -> tuple[Tensor, Tensor]:
        """The terms of a group, and zeros for their gradients, as :meth:`_Terms.new_by_key`."""
        by_key = terms.new_by_key(self.e)
        of_terms = torch.zeros_like(by_key)
        terms.key_products(by_key, self.e, self.rows)
        return by_key, of_terms

    def add_gradients(self, terms: _Terms, of_terms: Tensor) -> None:
        """Add the gradients of e and the rows, from the gradients of a group's terms."""
        inside, of_slices = terms.inside(of_terms)[0], self.e[0, :, terms.keys]
        self.de[0, :, terms.keys].baddbmm_(inside, terms.table(self.rows))
        terms.table(self.drows).baddbmm_(inside.mT, of_slices)


@torch.library.custom_op(f"{OPERATORS}::cpu_distances_backward", mutates_args=(), device_types="cpu")
def cpu_distances_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor, table: Tensor, e: Tensor | None, key_table: Tensor | None,
    buckets: Tensor | None, out: Tensor, lse: Tensor, key_mask: Tensor | None, global_mask: Tensor | None,
    ahead: int, left: int, right: int, causal: bool, global_rows: bool, chunk: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of :func:`cpu_distances` with respect to q, k, v, p, table, e and key_table. The last two are empty without key terms. Time
    and memory are linear in the number of tokens."""
    dtype = lse.dtype
    band = BandSettings.of(dtype, None, 0, left, right, causal, global_rows, scale)
    dq, dk, dv, dp = (x.zero_() for x in (*token_major(dtype, q, k, v), *token_major(p.dtype, p)))
    de = p.new_empty(0) if e is None else token_major(p.dtype, e)[0].zero_()
    tables = _Tables.of(p.shape[1], table, key_table, buckets, ahead)
    rows, key_rows, index = tables.in_band(left, right)
    totals = tables._replace(
        of_queries=tables.of_queries.new_zeros(tables.of_queries.shape),
        of_keys=None if tables.of_keys is None else tables.of_keys.new_zeros(tables.of_keys.shape),
    )
    drows, dkey_rows = torch.zeros_like(rows), None if key_rows is None else torch.zeros_like(key_rows)
    for item in _items(q, k, v, key_mask, global_mask, chunk):
        queries, keys = item.by_query, item.by_key
        of_out = grad[queries].to(dtype)
        of_out = of_out if item.hole is None else of_out.masked_fill(item.padding_rows(item.hole), 0)
        by_query = item.q.to(dtype), p[queries]
        by_key = item.k.to(dtype), item.v.to(dtype)
        of_e, into_e = (None, None) if e is None else (e[keys], de[keys])
        gradients = dq[queries], dp[queries], dk[keys], dv[keys]
        results = out[queries], lse[queries]
        for far in [] if item.globals is None else list(_far_calls(item, item.globals, band))[::-1]:  # the global rows first
            _far_backward(far, scale, (of_out, *results, *by_query), (*by_key, of_e), (*gradients, into_e), tables, totals)
            if far.alone:  # no other call computed their outputs
                of_out = of_out.clone()
                far.write(of_out, of_out.new_zeros(()))
        sums = (of_out * results[0]).sum(-1, keepdim=True)
        tensors = of_out, *by_query, results[1][..., None], sums, *by_key
        hole = None if item.hole is None else item.hole[0]
        for row in range(len(item.q)):
            state = _BackwardState(rows, drows, hole, *(x[row] for x in (*tensors, *gradients)))
            key_terms = None
            if of_e is not None and into_e is not None and key_rows is not None and dkey_rows is not None:
                key_terms = _KeyTerms(of_e[row : row + 1], key_rows, into_e[row : row + 1], dkey_rows)
            for group in _groups(item, left, right, chunk):
                _add_group(group, item.shift, left, right, scale, state, key_terms)
    totals.of_queries.index_add_(1, index, drows)
    if totals.of_keys is not None and dkey_rows is not None:
        totals.of_keys.index_add_(1, index, dkey_rows)
    dtable = _summed_over(totals.of_queries, table)
    dkey_table = p.new_empty(0) if totals.of_keys is None or key_table is None else _summed_over(totals.of_keys, key_table)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dp, dtable, de, dkey_table


def _add_group(group: Group, shift: int, left: int, right: int, scale: float, state: _BackwardState, key_terms: _KeyTerms | None) -> None:
    """Add the gradients of a group's blocks, in one sequence."""
    terms = _Terms.of(group, shift, left, right)
    scores, of_scores = terms.new(state.p, 1, MASKED), terms.new(state.p, 1, 0.0).zero_()
    for part in _parts(group):
        blocks, of_part = part.parts(1), terms._replace(group=part)
        if key_terms is None:
            for block in blocks:
                state.add_block(terms._replace(group=block), scale, scores, of_scores, None)
            continue
        by_key = key_terms.of_group(of_part)
        diagonals = zip(*(of_part.diagonals(x).unbind(1) for x in by_key), strict=True)
        for block, of_block in zip(blocks, diagonals, strict=True):
            state.add_block(terms._replace(group=block), scale, scores, of_scores, of_block)
        key_terms.add_gradients(of_part, by_key[1])


def _summed_over(gradients: Tensor, table: Tensor) -> Tensor:
    """The gradient of a table ``(H or 1, W, F)`` from those of every head."""
    return gradients if len(table) == len(gradients) else gradients.sum(0, keepdim=True)


def _far_backward(
    far: _FarCall, scale: float, by_query: tuple[Tensor, ...], by_key: tuple[Tensor, Tensor, Tensor | None],
    gradients: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None], tables: _Tables, totals: _Tables,
) -> None:  # fmt: skip
    """Add the gradients of a call for global tokens.

    Args:
        by_query: the gradients of the outputs, the outputs, their log-sum-exps, q and p.
        by_key: k, v and e.
        gradients: the accumulators for q, p, k, v and e.
        totals: the accumulators for the tables.
    """
    grad, out, lse, q, p = (far.queries(x) for x in by_query)
    k, v = (far.keys(x) for x in by_key[:2])
    e = None if by_key[2] is None else far.keys(by_key[2])
    dq, dp, dk, dv, de = gradients
    of_scores, weights = score_gradient(far.mask(far.terms(p, e, tables)), scale, grad, q, k, v, out, lse)
    of_p, of_e = far.terms_backward(of_scores, p, e, tables, totals)
    far.add_to_queries(dp, of_p)
    if de is not None and of_e is not None:
        far.add_to_keys(de, of_e)
    far.add_to_keys(dv, weights.mT @ grad)
    of_scores = of_scores.mul_(scale)
    far.add_to_queries(dq, of_scores @ k)
    far.add_to_keys(dk, of_scores.mT @ q)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, p, table, e, key_table, buckets, key_mask, global_mask, *ctx.settings = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, p, table, e, key_table, buckets, *output, key_mask, global_mask)


@one_gradient_at_a_time()
def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    dq, dk, dv, dp, dtable, *of_keys = cpu_distances_backward(grad, *tensors, *ctx.settings)
    without_keys = tensors[5] is None
    return first_derivatives_only(
        (dq, dk, dv, dp, dtable, *([None, None] if without_keys else of_keys), None, None, None, *[None] * len(ctx.settings))
    )


def _empty_gradients(_: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor, table: Tensor, *of_keys: Any) -> tuple[Tensor, ...]:
    e, key_table = of_keys[:2]
    empty = p.new_empty(0), p.new_empty(0)
    by_key = empty if e is None else (*token_major(p.dtype, e), key_table.new_empty(key_table.shape))
    return (*token_major(q.dtype, q, k, v), *token_major(p.dtype, p), table.new_empty(table.shape), *by_key)


cpu_distances.register_fake(lambda q, *_, **__: empty_results(q))
cpu_distances_backward.register_fake(_empty_gradients)
cpu_distances.register_autograd(_backward, setup_context=_setup_context)
