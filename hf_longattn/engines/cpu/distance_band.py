"""The path ``cpu-distances``: band and global tokens with distance terms, by PyTorch's fused CPU kernel.

A term depends on the distance and on the query or the key. The band of a query has w = left + right + 1 keys. The mask
of a block of n queries is built by the relative shift of Transformer-XL:

- M = p·rᵀ ``(n, w)`` are the products of the queries' vectors p with the table rows r of the distances. Row i of M has
  the terms of query i with the keys i to i + w - 1 of the block's slice.
- M is stored in rows of w + n numbers. The last n numbers of each row hide pairs.
- Read in rows of w + n - 1, the same memory has row i shifted right by i. This is the block's additive mask
  ``(n, n + w - 1)``, without a copy.
- The backward pass writes score gradients in rows of w + n - 1, and reads the gradients of M in rows of w + n.

Only the products of one call's blocks take memory.

Key terms are T = e·sᵀ ``(keys, w)``, the products of the vectors e of a call's keys with the table rows s. Query i
needs the entries T[i + t, t] for t < w, a diagonal of T. A strided view has these diagonals as its rows: w numbers lie
between queries, and w + 1 between entries of a row. The view is added to M, and the gradients of T are written through
it.
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

QUERIES_PER_BLOCK = 64
"""Queries per block. With windows of 256 keys, 64 is fastest of 32 to 256."""
QUERIES_PER_CALL = 512
"""Maximum queries per call. Larger calls gain nothing."""
MAX_CHUNK_IN_A_BLOCK = 2 * QUERIES_PER_BLOCK
"""Maximum chunk size in tokens for which a chunk is one block."""
PAIRS_PER_COLUMN_CALL = 4096
"""Maximum pairs of a query and a global token in one call. Each pair copies a table row."""


def why_not(context: DispatchContext) -> str | None:
    """Why this path does not run, as a clause. ``None`` if it may run."""
    why = why_no_kernel(context)
    if why is not None:
        return why
    if context.call.dropout:
        return NO_DROPOUT
    if "cpu-distances" in context.call.term.engines:
        return None
    return "the score term is not known to depend only on the distance and the query or the key"


class _Terms(NamedTuple):
    """The table rows that a group of equal blocks uses, and views of its terms in memory (see the module's
    docstring)."""

    group: Group
    first: int
    """Index of the first table row in use. Rows are ordered from distance ``left`` down to ``-right``."""
    rows: int
    """Number of table rows in use."""
    skipped: int
    """Numbers in a block's stored rows before its mask."""

    @classmethod
    def of(cls, group: Group, shift: int, left: int, right: int) -> _Terms:
        """The table rows for a group. The first of all queries is at key position ``shift``."""
        # index of the table row for the first query and the first key of a block
        corner = left - (group.first + shift - group.start)
        first = max(0, corner - group.block + 1)
        return cls(group, first, min(left + right + 1, corner + group.width) - first, corner - first)

    def new(self, like: Tensor, blocks: int, beyond: float) -> Tensor:
        """Allocate stored rows ``(H, blocks, block, rows + block)`` for H heads and the dtype of ``like (H, …)``.

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
        """A view of the entries for :attr:`keys` in a result of :meth:`key_products`."""
        return by_key.narrow(2, self.skipped, self.keys.stop - self.keys.start)

    def key_products(self, e: Tensor, rows: Tensor) -> Tensor:
        """Key terms ``(B, H, positions, self.rows)``: ``e (B, H, Nk, G)`` times the table rows in use.

        The positions are :attr:`keys`, and those before and after that lie at the distance of a table row from some
        query. The latter stay uninitialised, since no pair reads them.
        """
        positions = self.group.blocks * self.group.block + self.rows - 1
        by_key = e.new_empty(*e.shape[:2], positions, self.rows)
        inside, vectors = self.inside(by_key), e[:, :, self.keys]
        if len(e) == 1:
            torch.bmm(vectors[0], self.table(rows).mT, out=inside[0])
        else:
            inside.copy_(vectors @ self.table(rows).mT)
        return by_key

    def diagonals(self, by_key: Tensor) -> Tensor:
        """View ``(H, blocks, block, rows)`` of the key terms by query and table row. If there are several batch rows,
        each of them is one block."""
        batch, heads, _, _ = by_key.shape
        item_stride, head_stride, key_stride, _ = by_key.stride()
        blocks, block_stride = self.group.blocks, self.group.block * key_stride
        if batch > 1:
            blocks, block_stride = batch, item_stride
        shape = heads, blocks, self.group.block, self.rows
        return by_key.as_strided(shape, (head_stride, block_stride, key_stride, key_stride + 1))

    def pairs(self, stored: Tensor) -> Tensor:
        """View of stored rows by query and key, ``(blocks, H, block, width)``: each query's row is shifted by one
        key."""
        heads, blocks, block, _ = stored.shape
        head_stride, block_stride, row_stride, _ = stored.stride()
        shape = blocks, heads, block, self.group.width
        return stored.as_strided(shape, (block_stride, head_stride, row_stride - 1, 1), self.skipped)


def chunk_groups(q_len: int, kv_len: int, shift: int, chunk: int, before: int, *, causal: bool) -> Iterator[Group]:
    """Blocks that cover all queries. A chunk sees itself and ``before`` earlier tokens.

    Small chunks form one group, with one block per chunk. Other chunks, and chunks at the edges, are cut into blocks
    of up to :data:`QUERIES_PER_BLOCK` queries.

    Args:
        shift: position of the first query within the keys. The first chunk begins at key 0.
        causal: whether queries see no later keys. The keys of a block then end at its last query.
    """
    # Small chunks with all their queries and all the keys before them.
    first = -(-max(shift, before) // chunk)
    last = min(shift + q_len, kv_len) // chunk
    inner = range(first, last) if chunk <= MAX_CHUNK_IN_A_BLOCK else range(0)
    if inner:
        position = inner.start * chunk
        yield Group(position - shift, len(inner), chunk, start=position - before, step=chunk, width=before + chunk)
    # The other chunks: their queries begin … end - 1 see the keys start … stop - 1.
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
    """Every head's tables, with a row for each distance or bucket. Rows are found by :meth:`rows`."""

    queries: Tensor
    """The table for query terms, ``(H, W, F)``."""
    keys: Any
    """The table for key terms, ``(H, W, G)``; ``None`` without key terms."""
    buckets: Tensor | None
    ahead: int

    def rows(self, distance: Tensor) -> Tensor:
        """The index of each distance's table row."""
        if self.buckets is not None:
            return self.buckets[(distance + self.ahead).clamp(0, len(self.buckets) - 1)]
        return (distance + self.ahead).clamp(0, self.queries.shape[1] - 1)


def _terms(x: Tensor, table: Tensor, index: Tensor, few: bool) -> Tensor:
    """Products ``(b, H, n, m)`` of ``x (b, H, n, F)`` with rows ``index (n, m)`` of ``table (H, W, F)``.

    few: whether x has few tokens. Few tokens are multiplied by all table rows. For many, the table row of every pair
        is copied.
    """
    if few:
        return (x @ table.mT).gather(-1, index.expand(*x.shape[:2], -1, -1))
    return (table[:, index] @ x[..., None])[..., 0]


def _gradients(d_terms: Tensor, x: Tensor, table: Tensor, index: Tensor, d_table: Tensor, few: bool) -> Tensor:
    """The gradient of x in :func:`_terms`, for the gradient ``d_terms (b, H, n, m)`` of the terms. The gradient of the
    table is added to ``d_table``."""
    if few:
        d_products = d_terms.new_zeros(*x.shape[:3], table.shape[1])
        d_products.scatter_add_(-1, index.expand_as(d_terms), d_terms)
        d_table.add_((d_products.mT @ x).sum(0))
        return d_products @ table
    d_table.index_add_(1, index.flatten(), (d_terms[..., None] * x[..., None, :]).sum(0).flatten(1, 2))
    return (d_terms[..., None, :] @ table[:, index])[..., 0, :]


def _pieces(entries: Tensor) -> Iterator[slice]:
    """Yield the keys of ``entries (queries, keys)`` in slices of up to :data:`PAIRS_PER_COLUMN_CALL` pairs.

    These are the pieces for rows of global tokens; :func:`_few_queries` splits their columns.
    """
    queries, keys = entries.shape
    step = max(1, PAIRS_PER_COLUMN_CALL // queries)
    return (slice(start, start + step) for start in range(0, keys, step))


@source
class Distances(BandSource):
    """A band or chunks, and global tokens, with distance terms. The scaled score of query i and key j gets the terms

        p_i · r_{b(i-j)} + e_j · s_{b(i-j)}

    - learned: p ``(B, H, Nq, F)``, fp32, or float64 if q is. The table of r ``(H or 1, W, F)``, with a row per bucket
      or per distance ``-ahead … W - 1 - ahead``; distances outside use the first or the last row. For key terms also
      e ``(B, H, Nk, G)`` and the table of s ``(H or 1, W, G)``.
    - fixed: b, int64, the row of both tables for each distance from ``-ahead`` on, or None if each distance has its
      own row. Key mask and global mask ``(B, Nk)`` bool, or None.
    - numbers: ahead, left, right, causal, whether global tokens see every key, and tokens per chunk, or 0 for a band.
      The first chunk begins at the first key. All queries of a chunk see the same keys, but no key after the query if
      ``right`` is 0. The last query of a chunk sees ``left`` keys before it. The first query sees ``right`` keys after
      it.

    The queries are the last Nq positions. Names with ``d_`` are gradients.
    """

    name = "distances"
    plain_backward = True

    def read_arguments(self) -> None:
        """Set p, e, the masks, the pattern, and the tables with a copy of their rows for the band."""
        self.p, table, *key_terms = self.learned
        self.e: Any = None
        key_table: Any = None
        if key_terms:
            self.e, key_table = key_terms
        buckets, self.key_mask, self.global_mask = self.fixed
        ahead, left, right, causal, global_rows, self.chunk = self.numbers
        self.pattern = Pattern(left, right, bool(causal), True, bool(global_rows))
        heads = self.p.shape[1]
        by_head = None if key_table is None else key_table.expand(heads, -1, -1)
        self.tables = _Tables(table.expand(heads, -1, -1), by_head, buckets, ahead)

        # The rows of both tables for the distances left, …, -right, in the order of a query's keys.
        self.index = self.tables.rows(torch.arange(left, -right - 1, -1))
        self.rows = self.tables.queries[:, self.index]
        self.key_rows: Any = None if by_head is None else by_head[:, self.index]

    def most_blocks(self, item: Item) -> int:
        return -(-item.q_len // min(self.chunk or QUERIES_PER_BLOCK, QUERIES_PER_BLOCK))

    def parts(self, item: Item) -> Iterator[Part]:
        if self.is_backward:
            return itertools.chain(self._far(item), self._near_backward(item))
        return itertools.chain(self._near(item), self._far(item))

    def _far(self, item: Item) -> Iterator[Part]:
        """Yield the parts for global tokens, whose pairs may have any distance."""
        if item.tokens is None:
            return
        p = self.p[item.by_query]
        e = None if self.e is None else self.e[item.by_key]
        for far_part in item.far_parts(item.tokens, rows_first=self.is_backward):
            for part in _few_queries(far_part):
                entries = self.tables.rows(item.distances(part))  # (queries, keys)
                few = part.overrides  # the queries are the few global tokens; otherwise, the keys are
                part_p = part.queries.of(p)
                part_e = None if e is None else part.keys.of(e)
                mask = _terms(part_p, self.tables.queries, entries, few)
                if part_e is not None:
                    for keys in _pieces(entries):
                        terms = _terms(part_e[:, :, keys], self.tables.keys, entries[:, keys].T, not few)
                        mask[..., keys] += terms.mT
                if part.mask is not None:
                    mask = mask + part.mask
                part = part._replace(mask=item.with_hole(mask, part.keys))
                if self.is_backward:
                    add_gradients = partial(self._add_far_gradients, item, part, entries, part_p, part_e)
                    part = part._replace(of_scores=add_gradients)
                yield part

    def _add_far_gradients(
        self, item: Item, part: Part, entries: Tensor, p: Tensor, e: Tensor | None, d_scores: Tensor
    ) -> None:
        """Add the gradients of p, e and the tables from a part with global tokens.

        entries: the table row of each pair, ``(queries, keys)``.
        p, e: the vectors of the part's queries and keys.
        d_scores: the gradient of the part's scores, ``(b, H, queries, keys)``.
        """
        tables, totals, few = self.tables, self.d_tables, part.overrides
        part.queries.add(
            self.d_p[item.by_query], _gradients(d_scores, p, tables.queries, entries, totals.queries, few)
        )
        if e is None:
            return
        d_e = []
        for keys in _pieces(entries):
            d_terms, rows = d_scores[..., keys].mT, entries[:, keys].T
            d_e.append(_gradients(d_terms, e[:, :, keys], tables.keys, rows, totals.keys, not few))
        part.keys.add(self.d_e[item.by_key], torch.cat(d_e, 2))

    def _calls(self, item: Item) -> Iterator[tuple[_Terms, list[_Terms]]]:
        """Yield the :class:`_Terms` of each group of equal blocks, and a list with the :class:`_Terms` of its
        calls."""
        sizes = item.q_len, item.kv_len, item.shift
        left, right = self.pattern.left, self.pattern.right
        if self.chunk:
            blocks = chunk_groups(*sizes, self.chunk, left + 1 - self.chunk, causal=right == 0)
        else:
            blocks = groups(*sizes, left, right, QUERIES_PER_BLOCK)
        for group in blocks:
            terms = _Terms.of(group, item.shift, left, right)
            yield terms, [terms._replace(group=call) for call in group.parts(max(1, QUERIES_PER_CALL // group.block))]

    def _near(self, item: Item) -> Iterator[Part]:
        """Yield the parts for the band. Each mask reuses the memory of the mask before it."""
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
        """Yield one part for each block of the band, for the backward pass.

        The caller writes a part's score gradients into the part's ``memory``. When it asks for the next part, this
        method adds them to the gradients of the terms.

        Scores overwrite the terms in memory, and score gradients share memory with term gradients. With several
        blocks per part, and with separate masks and gradients, forward and backward take 6 to 18 % longer, or 33 %
        with key terms (1,024 to 4,096 tokens, windows of 256 and 512, 12 heads of 64, one thread).
        """
        p, d_p = self.p[item.by_query], self.d_p[item.by_query]
        e = None if self.e is None else self.e[item.by_key]
        for shared, calls in self._calls(item):
            # Memory that all blocks of the group use in turn. Gradients stay 0 where there is no pair.
            scores = shared.new(p[0], len(p), MASKED)
            d_scores = shared.new(p[0], len(p), 0.0).zero_()
            d_terms = d_scores[..., : shared.rows]
            rows = shared.table(self.rows)[None]
            for call in calls:
                if e is not None:
                    by_key = call.key_products(e, self.key_rows)
                    d_by_key = torch.zeros_like(by_key)
                    diagonals, d_diagonals = (call.diagonals(x).split(len(p), 1) for x in (by_key, d_by_key))
                for number, block in enumerate(call.group.parts(1)):
                    terms, queries = call._replace(group=block), _queries_by_head(block, p)
                    terms.add_products(scores, queries, self.rows)
                    if e is not None:
                        scores[..., : terms.rows] += diagonals[number]
                    mask = item.with_hole(terms.pairs(scores), block.keys)
                    yield Part(block.queries, block.keys, mask, memory=terms.pairs(d_scores))
                    # Here the caller has filled ``d_scores``.
                    add_product(block.queries.of(d_p), d_terms.transpose(0, 1), rows)
                    terms.table(self.d_rows).baddbmm_(d_terms.flatten(1, 2).mT, queries)
                    if e is not None:
                        d_diagonals[number].add_(d_terms)
                if e is not None:
                    d_inside = call.inside(d_by_key)
                    d_e = self.d_e[item.by_key][:, :, call.keys]
                    add_product(d_e, d_inside, call.table(self.key_rows)[None])
                    call.table(self.d_key_rows).add_((d_inside.mT @ e[:, :, call.keys]).sum(0))

    def scopes(self, backward: bool) -> Iterator[Item]:
        """As in the base class. A backward pass first sets the gradients of p, e and the tables to zero."""
        if backward:  # gradients of terms are always computed
            query_table, key_table = self.tables.queries, self.tables.keys
            self.d_tables = self.tables._replace(
                queries=query_table.new_zeros(query_table.shape),
                keys=None if key_table is None else key_table.new_zeros(key_table.shape),
            )
            self.d_p, self.d_rows = token_major(self.p.dtype, self.p)[0].zero_(), torch.zeros_like(self.rows)
            if self.e is not None:
                self.d_e, self.d_key_rows = (
                    token_major(self.e.dtype, self.e)[0].zero_(),
                    torch.zeros_like(self.key_rows),
                )
        return super().scopes(backward)

    def learned_gradients(self) -> list[Tensor]:
        self.d_tables.queries.index_add_(1, self.index, self.d_rows)
        gradients = [self.d_p, self.d_tables.queries.sum_to_size(self.learned[1].shape)]
        if self.e is not None:
            self.d_tables.keys.index_add_(1, self.index, self.d_key_rows)
            gradients += [self.d_e, self.d_tables.keys.sum_to_size(self.learned[3].shape)]
        return gradients


def _few_queries(part: Part) -> Iterator[Part]:
    """Split a part in which all queries see global keys into parts of up to :data:`PAIRS_PER_COLUMN_CALL` pairs. Yield
    another part unchanged."""
    if not isinstance(part.queries, Runs) or not isinstance(part.keys, Listed):
        yield part
        return
    step = max(1, PAIRS_PER_COLUMN_CALL // len(part.keys.tokens))
    for at in range(0, part.queries.size, step):
        queries = part.queries.part(at, min(step, part.queries.size - at))
        mask = None if part.mask is None else part.mask[:, :, at : at + queries.size]
        yield part._replace(queries=queries, mask=mask)


def distance_attention(
    q: Tensor, k: Tensor, v: Tensor, term: DistanceTerm, pattern: Pattern, call: AttentionCall, chunk: int = 0
) -> Tensor:
    """Softmax attention ``(B, H, Nq, D)`` over a band or chunks with distance terms, by the CPU's kernel.

    Args:
        q, k, v: ``(B, H, Nq, D)``, ``(B, H, Nk, D)``; the queries are the last Nq positions.
        pattern: the band and global rows. With chunks, ``left`` counts from the last query of a chunk, and ``right``
            from its first query.
        chunk: tokens per chunk; 0 for a band. All queries of a chunk see the same keys. If causal, keys after the
            query are hidden.
    """
    scale = call.scale_for(q.shape[-1])
    dtype, output_dtype = precise_dtype(q), q.dtype
    learned = [term.queries, term.table, *(x for x in (term.key_vectors, term.key_table) if x is not None)]
    if term.content is not None:  # a sum in half precision would round the query again
        q, k, v = (x.to(dtype) for x in (q, k, v))
        q = q + (term.content[:, None] / scale).to(dtype)
    left, right = pattern.left, pattern.right
    if not chunk:
        left, right = min(left, k.shape[2]), min(right, k.shape[2])
    fixed = term.buckets, call.key_mask, call.global_mask if pattern.has_globals else None
    numbers = term.ahead, left, right, int(pattern.causal), int(pattern.global_rows), chunk
    return attend_parts(
        "distances", q, k, v, scale, [x.to(dtype) for x in learned], fixed, numbers, 0.0, call.sink_scores
    ).to(output_dtype)


def chunked_distances(
    q: Tensor, k: Tensor, v: Tensor, term: DistanceTerm, chunk: int, before: int, call: AttentionCall
) -> Tensor:
    """Attention ``(B, H, Nq, D)`` within chunks and to the ``before`` tokens in front of each chunk, with a distance
    term. The first chunk starts at token 0.

    Args:
        q, k, v: ``(B, H, Nq, D)``, ``(B, H_kv, Nk, D)``.
    """
    q, k, v = same_dtype(q, k, v)
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    pattern = Pattern(before + chunk - 1, 0 if call.causal else chunk - 1, call.causal)
    return distance_attention(q, k, v, term, pattern, call, chunk)
