"""The path ``cpu-distances``: band and global tokens with distance terms, by PyTorch's fused CPU kernel.

A term depends on the distance and on the query or the key. The band of a query has w = left + right + 1 keys. The mask
of a block of n queries is built by the relative shift of Transformer-XL. M = p·rᵀ ``(n, w)`` are the products of the
queries' vectors p with the table rows r of the distances. Row i of M has the terms of query i with keys i, …, i + w -
1 of the block's slice. M is stored in rows of w + n numbers, and the last n hide pairs. Read in rows of w + n - 1, the
same memory has row i shifted right by i: this is the block's additive mask ``(n, n + w - 1)``, without a copy. Only
the products of one call's blocks take memory. The backward pass writes score gradients in rows of w + n - 1, and reads
the gradients of M in rows of w + n.

Key terms are T = e·sᵀ ``(keys, w)``, the products of the vectors e of a call's keys with the table rows s. Query i
needs T[i + t, t], a diagonal. It is read as a strided view (w between queries, w + 1 within a row) and added to M. The
gradients of T are written through it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..call import AttentionCall, DispatchContext, Pattern, precise_dtype
from ..dense import repeat_heads, same_dtype
from ..score_terms import DistanceTerm
from .band import BandSource, Group, Item, groups
from .kernels import MASKED, NO_DROPOUT, token_major
from .kernels import why_not as why_no_kernel
from .softmax import Listed, Part, Runs, add_product, attend_parts, source

QUERIES_PER_BLOCK, QUERIES_PER_CALL = 64, 512
"""Queries per block, and maximum queries per call. With windows of 256 keys, 64 is fastest of 32 to 256; larger calls
gain nothing."""
MAX_CHUNK_IN_A_BLOCK = 2 * QUERIES_PER_BLOCK
"""Maximum chunk size in tokens for which a chunk is one block."""
PAIRS_PER_COLUMN_CALL = 4096
"""Maximum pairs of a query and a global token in one call. Each pair copies a table row."""


def why_not(context: DispatchContext) -> str | None:
    """Why this path does not run, as a clause. ``None`` if it may run."""
    if (why := why_no_kernel(context)) is not None:
        return why
    if context.call.dropout:
        return NO_DROPOUT
    if "cpu-distances" in context.call.term.engines:
        return None
    return "the score term is not known to depend only on the distance and the query or the key"


class _Terms(NamedTuple):
    """The table rows that the blocks of a group use, and the offset of each block's mask."""

    group: Group
    first: int
    """Index of the first table row in use. Rows are ordered from distance ``left`` down to ``-right``."""
    rows: int
    """Number of table rows in use."""
    skipped: int
    """Offset of a block's mask in its stored rows, in elements."""

    @classmethod
    def of(cls, group: Group, shift: int, left: int, right: int) -> _Terms:
        """The table rows for a group. The first of all queries is at key position ``shift``."""
        # index of the table row for the first query and the first key
        before = left - (group.first + shift - group.start)
        first = max(0, before - group.block + 1)
        return cls(group, first, min(left + right + 1, before + group.width) - first, before - first)

    def new(self, like: Tensor, blocks: int, beyond: float) -> Tensor:
        """Allocate stored rows ``(H, blocks, block, rows + block)`` like ``like (H, …)``.

        The last ``block`` numbers of a row are set to ``beyond``. :meth:`add_products` fills the first ``rows``.
        """
        stored = like.new_empty(like.shape[0], blocks, self.group.block, self.rows + self.group.block)
        stored[..., self.rows :] = beyond
        return stored

    def table(self, rows: Tensor) -> Tensor:
        """The rows that this group uses from a table ``rows (H or 1, w, F)``."""
        return rows[:, self.first : self.first + self.rows]

    def add_products(self, stored: Tensor, p: Tensor, rows: Tensor) -> None:
        """Fill stored rows with the terms of queries ``p (H, blocks * block, F)``."""
        torch.bmm(p, self.table(rows).mT, out=stored.flatten(1, 2)[..., : self.rows])

    @property
    def keys(self) -> slice:
        """The keys of all blocks together."""
        return slice(self.group.start, self.group.start + (self.group.blocks - 1) * self.group.step + self.group.width)

    def inside(self, by_key: Tensor) -> Tensor:
        """The slice of a result of :meth:`key_products` that covers :attr:`keys`, as a view."""
        return by_key.narrow(2, self.skipped, self.keys.stop - self.keys.start)

    def key_products(self, e: Tensor, rows: Tensor) -> Tensor:
        """Key terms ``(B, H, keys, self.rows)``: ``e (B, H, Nk, G)`` times the table rows in use.

        The axis ``keys`` has every position at the distance of such a row from some query. Positions outside
        :attr:`keys` stay uninitialised; no pair reads them.
        """
        keys = self.group.blocks * self.group.block + self.rows - 1
        by_key = e.new_empty(*e.shape[:2], keys, self.rows)
        inside, of_slices = self.inside(by_key), e[:, :, self.keys]
        if len(e) == 1:
            torch.bmm(of_slices[0], self.table(rows).mT, out=inside[0])
        else:
            inside.copy_(of_slices @ self.table(rows).mT)
        return by_key

    def diagonals(self, by_key: Tensor) -> Tensor:
        """View ``(H, blocks, block, rows)`` of the key terms by query and table row. Each of several batch rows is one
        block."""
        batch, heads, _, _ = by_key.shape
        of_item, of_head, key, _ = by_key.stride()
        blocks, step = (self.group.blocks, self.group.block * key) if batch == 1 else (batch, of_item)
        return by_key.as_strided((heads, blocks, self.group.block, self.rows), (of_head, step, key, key + 1))

    def pairs(self, stored: Tensor) -> Tensor:
        """View of stored rows by query and key, ``(blocks, H, block, width)``: each query's row is shifted by one
        key."""
        heads, blocks, block, _ = stored.shape
        of_head, of_block, row, _ = stored.stride()
        return stored.as_strided(
            (blocks, heads, block, self.group.width), (of_block, of_head, row - 1, 1), self.skipped
        )


def chunk_groups(q_len: int, kv_len: int, shift: int, chunk: int, before: int, *, causal: bool) -> Iterator[Group]:
    """Blocks that cover all queries. A chunk sees itself and ``before`` earlier tokens.

    Small chunks form one group, with one block per chunk. Other chunks, and chunks at the edges, are cut into blocks
    of up to :data:`QUERIES_PER_BLOCK` queries.

    Args:
        shift: position of the first query within the keys. The first chunk begins at key 0.
        causal: whether queries see no later keys. The keys of a block then end at its last query.
    """
    first, last = -(-max(shift, before) // chunk), min(shift + q_len, kv_len) // chunk
    inner = range(first, last) if chunk <= MAX_CHUNK_IN_A_BLOCK else range(0)
    if inner:
        position = inner.start * chunk
        yield Group(position - shift, len(inner), chunk, start=position - before, step=chunk, width=before + chunk)
    for number in range(shift // chunk, -(-(shift + q_len) // chunk)):
        if number in inner:
            continue
        begin, end = max(shift, number * chunk), min(shift + q_len, (number + 1) * chunk)
        start, stop = max(0, number * chunk - before), min(kv_len, (number + 1) * chunk)
        for row in range(begin, end, QUERIES_PER_BLOCK):
            size = min(QUERIES_PER_BLOCK, end - row)
            width = (row + size if causal else stop) - start
            yield Group(row - shift, 1, size, start=start, step=width, width=width)


def _queries_by_head(group: Group, x: Tensor) -> Tensor:
    """A group's queries in ``x (b, H, Nq, F)``, as ``(H, queries of all blocks, F)``."""
    queries = x.narrow(2, group.first, group.blocks * group.block)
    return queries[0] if len(x) == 1 else queries.transpose(0, 1).flatten(1, 2)


class _Tables(NamedTuple):
    """Every head's tables with W rows for distances: ``(H, W, F)`` for query terms, ``(H, W, G)`` for key terms."""

    of_queries: Tensor
    of_keys: Any
    """``None`` without key terms, as are the other attributes of keys of :class:`Distances`."""
    buckets: Tensor | None
    ahead: int

    def rows(self, distance: Tensor) -> Tensor:
        """The index of each distance's table row."""
        if self.buckets is not None:
            return self.buckets[(distance + self.ahead).clamp(0, len(self.buckets) - 1)]
        return (distance + self.ahead).clamp(0, self.of_queries.shape[1] - 1)


def _terms(x: Tensor, table: Tensor, index: Tensor, few: bool) -> Tensor:
    """Products ``(b, H, n, m)`` of ``x (b, H, n, F)`` with rows ``index (n, m)`` of ``table (H, W, F)``.

    few: whether x has few tokens. If so, they are multiplied by all table rows. Otherwise the table row of every pair
        is copied.
    """
    if few:
        return (x @ table.mT).gather(-1, index.expand(*x.shape[:2], -1, -1))
    return (table[:, index] @ x[..., None])[..., 0]


def _gradients(of_terms: Tensor, x: Tensor, table: Tensor, index: Tensor, dtable: Tensor, few: bool) -> Tensor:
    """The gradient of x in :func:`_terms`. The table's gradient is added to ``dtable``."""
    if few:
        of_products = of_terms.new_zeros(*x.shape[:3], table.shape[1]).scatter_add_(
            -1, index.expand_as(of_terms), of_terms
        )
        dtable.add_((of_products.mT @ x).sum(0))
        return of_products @ table
    dtable.index_add_(1, index.flatten(), (of_terms[..., None] * x[..., None, :]).sum(0).flatten(1, 2))
    return (of_terms[..., None, :] @ table[:, index])[..., 0, :]


def _pieces(entries: Tensor) -> Iterator[slice]:
    """All keys of ``entries (queries, keys)``, in slices of up to :data:`PAIRS_PER_COLUMN_CALL` pairs.
    :func:`_few_queries` has already split global columns."""
    queries, keys = entries.shape
    step = max(1, PAIRS_PER_COLUMN_CALL // queries)
    return (slice(start, start + step) for start in range(0, keys, step))


@source
class Distances(BandSource):
    """A band or chunks, and global tokens, with distance terms. The scaled scores get the terms p_i · r_{b(i-j)} + e_j
    · s_{b(i-j)}.

    - learned: p ``(B, H, Nq, F)``, fp32, or float64 if q is; the table of r ``(H or 1, W, F)``, with a row per bucket
      or per distance ``-ahead … W - 1 - ahead`` (distances outside use the first or last row); for key terms also e
      ``(B, H, Nk, G)`` and the table of s.
    - fixed: b, int64, the row of both tables for each distance from ``-ahead`` on, or None if each distance has its
      own row; key mask and global mask ``(B, Nk)`` bool, or None.
    - numbers: ahead, left, right, causal, whether global tokens see every key, and tokens per chunk, or 0 for a band.
      The first chunk begins at the first key. All queries of a chunk see the same keys, but none after the query if
      ``right`` is 0. A chunk's last query sees ``left`` keys before it, its first query ``right`` keys after it.

    The queries are the last Nq positions.
    """

    name = "distances"
    plain_backward = True

    def read_arguments(self) -> None:
        self.p, table, *of_keys = self.learned
        self.e, key_table = (*of_keys, None, None)[:2]
        buckets, self.key_mask, self.global_mask = self.fixed
        ahead, left, right, causal, global_rows, self.chunk = self.numbers
        self.pattern = Pattern(left, right, bool(causal), True, bool(global_rows))
        heads = self.p.shape[1]
        by_head = None if key_table is None else key_table.expand(heads, -1, -1)
        self.tables = _Tables(table.expand(heads, -1, -1), by_head, buckets, ahead)

        # The rows of both tables for the distances left, …, -right: of a query's keys in order.
        self.index = self.tables.rows(torch.arange(left, -right - 1, -1))
        self.rows = self.tables.of_queries[:, self.index]
        self.key_rows: Any = None if by_head is None else by_head[:, self.index]

    def most_blocks(self, item: Item) -> int:
        return -(-item.q_len // min(self.chunk or QUERIES_PER_BLOCK, QUERIES_PER_BLOCK))

    def parts(self, item: Item) -> Iterator[Part]:
        if self.is_backward:
            return itertools.chain(self._far(item), self._near_backward(item))
        return itertools.chain(self._near(item), self._far(item))

    def _far(self, item: Item) -> Iterator[Part]:
        """Parts for the global tokens."""
        if item.tokens is None:
            return
        p = self.p[item.by_query]
        e = None if self.e is None else self.e[item.by_key]
        for far_part in item.far_parts(item.tokens, rows_first=self.is_backward):
            for part in _few_queries(far_part):
                entries, few = self.tables.rows(item.distances(part)), part.overrides  # global rows are few
                of_queries = part.queries.of(p)
                of_keys = None if e is None else part.keys.of(e)
                mask = _terms(of_queries, self.tables.of_queries, entries, few)
                if of_keys is not None:
                    for keys in _pieces(entries):
                        terms = _terms(of_keys[:, :, keys], self.tables.of_keys, entries[:, keys].T, not few)
                        mask[..., keys] += terms.mT
                if part.mask is not None:
                    mask = mask + part.mask
                part = part._replace(mask=item.with_hole(mask, part.keys))
                if self.is_backward:
                    add_gradients = partial(self._add_far_gradients, item, part, entries, of_queries, of_keys)
                    part = part._replace(of_scores=add_gradients)
                yield part

    def _add_far_gradients(
        self, item: Item, part: Part, entries: Tensor, p: Tensor, e: Tensor | None, of_scores: Tensor
    ) -> None:
        """Add the gradients of a part with global tokens.

        entries: the table row of each pair, ``(queries, keys)``. p, e: those of the part's queries and keys.
        """
        tables, totals, few = self.tables, self.of_tables, part.overrides
        of_p = _gradients(of_scores, p, tables.of_queries, entries, totals.of_queries, few)
        part.queries.add(self.dp[item.by_query], of_p)
        if e is None:
            return
        of_e = []
        for keys in _pieces(entries):
            of_terms, rows = of_scores[..., keys].mT, entries[:, keys].T
            of_e.append(_gradients(of_terms, e[:, :, keys], tables.of_keys, rows, totals.of_keys, not few))
        part.keys.add(self.key_sums[0][item.by_key], torch.cat(of_e, 2))

    def _calls(self, item: Item) -> Iterator[tuple[_Terms, list[_Terms]]]:
        """Yield for each group of equal blocks its :class:`_Terms`, and a list of the :class:`_Terms` of its calls."""
        sizes, left, right = (item.q_len, item.kv_len, item.shift), self.pattern.left, self.pattern.right
        if self.chunk:
            blocks = chunk_groups(*sizes, self.chunk, left + 1 - self.chunk, causal=right == 0)
        else:
            blocks = groups(*sizes, left, right, QUERIES_PER_BLOCK)
        for group in blocks:
            terms = _Terms.of(group, item.shift, left, right)
            yield terms, [terms._replace(group=call) for call in group.parts(max(1, QUERIES_PER_CALL // group.block))]

    def _near(self, item: Item) -> Iterator[Part]:
        """Parts for the band. Each mask reuses the previous mask's memory."""
        p = self.p[item.by_query]
        e = None if self.e is None else self.e[item.by_key]
        for _, calls in self._calls(item):
            stored: Tensor | None = None
            for terms in calls:
                blocks = max(terms.group.blocks, len(p))
                if stored is None or stored.shape[1] != blocks:
                    stored = terms.new(p[0], blocks, MASKED)
                terms.add_products(stored, _queries_by_head(terms.group, p), self.rows)
                if e is not None:
                    stored[..., : terms.rows] += terms.diagonals(terms.key_products(e, self.key_rows))
                yield Part(
                    terms.group.queries, terms.group.keys, item.with_hole(terms.pairs(stored), terms.group.keys)
                )

    def _near_backward(self, item: Item) -> Iterator[Part]:
        """Yield one part for each block of the band.

        The caller writes a part's score gradients into the part's ``memory``. When it asks for the next part, they are
        added to the gradients of the terms.

        Scores overwrite the terms in memory, and score gradients share memory with term gradients. A version with
        several blocks per part, and separate masks and gradients, takes 6 to 18 % longer forward and backward, and 33
        % with key terms (1,024 to 4,096 tokens, windows of 256 and 512, 12 heads of 64, one thread).
        """
        p, dp = self.p[item.by_query], self.dp[item.by_query]
        e = None if self.e is None else self.e[item.by_key]
        for shared, calls in self._calls(item):
            # stays 0 where there is no pair
            scores, of_scores = shared.new(p[0], len(p), MASKED), shared.new(p[0], len(p), 0.0).zero_()
            of_terms, rows = of_scores[..., : shared.rows], shared.table(self.rows)[None]
            for call in calls:
                if e is not None:
                    by_key = call.key_products(e, self.key_rows)
                    of_keys = torch.zeros_like(by_key)
                    diagonals, of_diagonals = (call.diagonals(x).split(len(p), 1) for x in (by_key, of_keys))
                for number, block in enumerate(call.group.parts(1)):
                    terms, queries = call._replace(group=block), _queries_by_head(block, p)
                    terms.add_products(scores, queries, self.rows)
                    if e is not None:
                        scores[..., : terms.rows] += diagonals[number]
                    mask = item.with_hole(terms.pairs(scores), block.keys)
                    yield Part(block.queries, block.keys, mask, memory=terms.pairs(of_scores))
                    add_product(block.queries.of(dp), of_terms.transpose(0, 1), rows)
                    terms.table(self.drows).baddbmm_(of_terms.flatten(1, 2).mT, queries)
                    if e is not None:
                        of_diagonals[number].add_(of_terms)
                if e is not None:
                    inside, (de, drows) = call.inside(of_keys), self.key_sums
                    add_product(de[item.by_key][:, :, call.keys], inside, call.table(self.key_rows)[None])
                    call.table(drows).add_((inside.mT @ e[:, :, call.keys]).sum(0))

    def scopes(self, backward: bool) -> Iterator[Item]:
        if backward:  # gradients of terms are always computed
            of_queries, of_keys = self.tables.of_queries, self.tables.of_keys
            self.of_tables = self.tables._replace(
                of_queries=of_queries.new_zeros(of_queries.shape),
                of_keys=None if of_keys is None else of_keys.new_zeros(of_keys.shape),
            )
            self.dp, self.drows = token_major(self.p.dtype, self.p)[0].zero_(), torch.zeros_like(self.rows)
            if self.e is not None:
                self.key_sums = token_major(self.e.dtype, self.e)[0].zero_(), torch.zeros_like(self.key_rows)
        return super().scopes(backward)

    def learned_gradients(self) -> list[Tensor]:
        self.of_tables.of_queries.index_add_(1, self.index, self.drows)
        gradients = [self.dp, self.of_tables.of_queries.sum_to_size(self.learned[1].shape)]
        if self.e is not None:
            self.of_tables.of_keys.index_add_(1, self.index, self.key_sums[1])
            gradients += [self.key_sums[0], self.of_tables.of_keys.sum_to_size(self.learned[3].shape)]
        return gradients


def _few_queries(part: Part) -> Iterator[Part]:
    """Split a part of global columns into parts of up to :data:`PAIRS_PER_COLUMN_CALL` pairs. Other parts are not
    split."""
    if not isinstance(part.queries, Runs) or not isinstance(part.keys, Listed):
        yield part
        return
    step = max(1, PAIRS_PER_COLUMN_CALL // len(part.keys.tokens))
    for at in range(0, part.queries.size, step):
        queries = part.queries.part(at, min(step, part.queries.size - at))
        yield part._replace(
            queries=queries, mask=None if part.mask is None else part.mask[:, :, at : at + queries.size]
        )


def distance_attention(
    q: Tensor, k: Tensor, v: Tensor, term: DistanceTerm, pattern: Pattern, call: AttentionCall, chunk: int = 0
) -> Tensor:
    """Softmax attention over a band or chunks with distance terms, by the CPU's kernel.

    Args:
        q, k, v: ``(B, H, Nq, D)``, ``(B, H, Nk, D)``; the queries are the last Nq positions.
        pattern: the band and global rows. With chunks, ``left`` counts from a chunk's last query and ``right`` from
            its first.
        chunk: tokens per chunk; 0 for a band. All queries of a chunk see the same keys. If causal, keys after the
            query are hidden.
    """
    scale, dtype, kv_len, dtype_of_output = call.scale_for(q.shape[-1]), precise_dtype(q), k.shape[2], q.dtype
    learned = [term.queries, term.table, *(x for x in (term.of_keys, term.key_table) if x is not None)]
    if term.content is not None:  # a sum in half precision would round the query again
        q, k, v = (x.to(dtype) for x in (q, k, v))
        q = q + (term.content[:, None] / scale).to(dtype)
    left, right = (pattern.left, pattern.right) if chunk else (min(pattern.left, kv_len), min(pattern.right, kv_len))
    fixed = term.buckets, call.key_mask, call.global_mask if pattern.has_globals else None
    numbers = term.ahead, left, right, int(pattern.causal), int(pattern.global_rows), chunk
    return attend_parts(
        "distances", q, k, v, scale, [x.to(dtype) for x in learned], fixed, numbers, 0.0, call.sink_scores
    ).to(dtype_of_output)


def chunked_distances(
    q: Tensor, k: Tensor, v: Tensor, term: DistanceTerm, chunk: int, before: int, call: AttentionCall
) -> Tensor:
    """Attention within chunks and to the ``before`` tokens in front of each, with a distance term. The first chunk
    starts at token 0.

    Args:
        q, k, v: ``(B, H, Nq, D)``, ``(B, H_kv, Nk, D)``.
    """
    q, k, v = same_dtype(q, k, v)
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    pattern = Pattern(before + chunk - 1, 0 if call.causal else chunk - 1, call.causal)
    return distance_attention(q, k, v, term, pattern, call, chunk)
