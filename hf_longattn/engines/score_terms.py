"""Terms that are added to the scaled scores, for example a bias by distance.

A call's ``score_mod`` is a function as in flex_attention, or a :class:`ScoreTerm`. Every engine can call it for its
visible pairs. The engines in :attr:`ScoreTerm.engines` add a term in another way, with less memory. A term can be
re-indexed for some heads, for one sequence of a batch, or for rolled rows. :func:`as_term` makes a term of a plain
function, so that it has these methods too.

| term | for the query i, the key j and the head h | models |
|---|---|---|
| :class:`DistanceBias` | ``table[h, i - j]`` | T5, ALiBi, MPNet |
| :class:`DistanceTerm` | ``p_i · r_{i-j} + e_j · s_{i-j} + c · k_j`` | Transformer-XL, Shaw, DeBERTa, WavLM |
| :class:`ColumnTerm` | ``table[h, i, j]`` for the first keys j | sinks of rotary decoders |
| :class:`GridBias` | ``table[h, x(i) - x(j)]``, places x on a grid | Swin, BEiT |
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .batch import graph_property
from .byte_cache import BYTE_CACHE
from .token_grid import Grid

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""``score_mod(score, b, h, q_idx, kv_idx) -> score``, as in ``torch.nn.attention.flex_attention``."""
Move = Callable[[Tensor, int], Tensor]
"""``move(x, dim)`` moves the tokens on axis ``dim`` of ``x (B, …)``."""
Index = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``index(b, position) -> (b, position)``: the batch row and the position of a token before a move, from those after
it."""
PREFIX_PAIRS = 3
"""Number of table entries for pairs with prefix tokens: only the query, only the key, or both are prefix tokens."""


class ScoreTerm:
    """A ``score_mod`` that can be re-indexed when an engine moves tokens (:meth:`moved`, :meth:`of_sequence`).

    The engines in :attr:`engines` add it without calling it for every pair. The default methods suit any function of
    absolute positions. A subclass overrides :meth:`__call__` or :attr:`written_out`.
    """

    engines: tuple[str, ...] = ()
    """Paths that add the term without calling it. Other paths call it for their pairs."""
    by_distance_alone: bool = False
    """Whether the term depends only on distance and head, so that positions may count from any token."""
    moves_with_tokens: bool = True
    """Whether the term must be re-indexed when tokens move."""

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """The scores with the term added. The arguments broadcast."""
        return self.written_out(score, b, h, q_idx, kv_idx)

    @property
    def written_out(self) -> ScoreMod:
        """The term as a plain function. It computes products with queries or keys once, and each call looks them
        up."""
        return self

    def of_heads(self, heads: Sequence[int], device: torch.device) -> ScoreMod:
        """The term for ``heads`` only, renumbered from 0. ``device``: the queries' device."""
        inner = self.written_out
        numbers = _numbers(tuple(heads), device)
        return lambda score, b, h, q_idx, kv_idx: inner(score, b, numbers[h], q_idx, kv_idx)

    def of_sequence(self, row: int, start: int, stop: int) -> ScoreMod:
        """The term of one batch row's keys ``start … stop - 1``, and of the queries at these positions."""
        if not (start or row):
            return self
        return self._indexed(lambda b, position: (b + row, position + start))

    def moved(self, move: Move, index: Index) -> ScoreMod:
        """The term after tokens moved. Afterwards, there are as many queries as keys.

        Args:
            move: moves tensors that the term holds per token.
            index: maps rows and positions back, see :data:`Index`. Padding may map to any token.
        """
        return self._indexed(index)

    def _indexed(self, index: Index) -> ScoreMod:
        """The term as a function that is called with the rows and positions from ``index``. Unchanged if the term does
        not depend on where tokens are."""
        if not self.moves_with_tokens:
            return self
        inner = self.written_out

        def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            row, query = index(b, q_idx)
            return inner(score, row, h, query, index(b, kv_idx)[1])

        return mod


@dataclasses.dataclass(frozen=True)
class _Function(ScoreTerm):
    """A plain function of absolute positions."""

    function: ScoreMod
    engines: tuple[str, ...] = ()

    @property
    def written_out(self) -> ScoreMod:
        return self.function


NO_TERM = _Function(lambda score, *_: score, engines=("cpu-band", "dense", "windows"))


def as_term(score_mod: ScoreMod | None) -> ScoreTerm:
    """``score_mod`` with the methods of a :class:`ScoreTerm`. ``None`` becomes :data:`NO_TERM`."""
    if score_mod is None:
        return NO_TERM
    if isinstance(score_mod, ScoreTerm):
        return score_mod
    return _Function(score_mod)


def remapped(score_mod: ScoreMod | None, position: Callable[[Tensor, Tensor, Tensor], Tensor]) -> ScoreMod | None:
    """``score_mod`` for an engine whose key indices are not positions. The position of a key is
    ``position(b, h, kv_idx)``."""
    if score_mod is None:
        return None
    inner = as_term(score_mod).written_out
    return lambda score, b, h, q_idx, kv_idx: inner(score, b, h, q_idx, position(b, h, kv_idx))


def add_term(score_mod: ScoreMod | None, term: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> ScoreMod:
    """``score_mod`` with ``term(b, h, q_idx, kv_idx)`` added to its score."""
    inner = as_term(score_mod).written_out

    def mod(score: Tensor, *index: Tensor) -> Tensor:
        score = inner(score, *index)
        return score + term(*index).to(score.dtype)

    return mod


def chain_score_mods(first: ScoreMod, second: ScoreMod | None) -> ScoreMod:
    """A score term that applies ``first``, then ``second``."""
    if second is None:
        return first
    inner = as_term(first).written_out
    return lambda score, *index: second(inner(score, *index), *index)


def device_scalar(number: float, device: torch.device) -> float | Tensor:
    """``number`` as a constant of a score term. On a GPU it is a tensor, since compiled kernels take no Python float
    from a closure."""
    if device.type == "cpu":
        return number
    return BYTE_CACHE.get(
        ("constant", number, device), lambda: torch.full((), number, dtype=torch.float32, device=device)
    )


def _numbers(heads: tuple[int, ...], device: torch.device) -> Tensor:
    """``heads`` as an index tensor, ``(len(heads),)`` int64 on ``device``; cached."""
    return BYTE_CACHE.get(("numbers of heads", heads, device), lambda: torch.tensor(heads).to(device))


def take_heads(x: Tensor, heads: Sequence[int], axis: int = 1) -> Tensor:
    """The slices ``heads`` of ``x`` along ``axis``, as a view if the heads are consecutive. The head numbers are
    copied to a GPU once."""
    if list(heads) == list(range(heads[0], heads[0] + len(heads))):
        return x.narrow(axis, heads[0], len(heads))
    return x.index_select(axis, _numbers(tuple(heads), x.device))


@dataclasses.dataclass(frozen=True)
class DistanceBias(ScoreTerm):
    """A ``score_mod`` of the distance and the head: adds ``table[h, (q_idx - kv_idx) + ahead]``.

    The CPU's band engine adds the table to blocks of scores. Every other engine calls the term as an ordinary
    ``score_mod``.

    table: ``(H, back + ahead + 1)`` for the distances ``-ahead … back``; distances beyond these are clamped.
    """

    table: Tensor
    ahead: int

    engines = ("cpu-band",)
    by_distance_alone = True
    moves_with_tokens = False

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return score + self.table[h, (q_idx - kv_idx + self.ahead).clamp(0, self.table.shape[1] - 1)]

    def of_heads(self, heads: Sequence[int], device: torch.device) -> DistanceBias:
        return DistanceBias(take_heads(self.table, heads, 0), self.ahead)

    def over(self, distance: Tensor) -> Tensor:
        """The bias ``(H, rows, columns)`` for distances ``(rows, columns)``."""
        return self.table[:, (distance + self.ahead).clamp(0, self.table.shape[1] - 1)]

    def add_gradient(self, total: Tensor, distance: Tensor, of_scores: Tensor) -> None:
        """Add the gradient of scores ``(H, rows, columns)`` at these distances to ``total``, shaped like the table."""
        index = (distance + self.ahead).clamp(0, self.table.shape[1] - 1)
        total.index_add_(1, index.flatten(), of_scores.flatten(1).to(total.dtype))


@dataclasses.dataclass(frozen=True, eq=False)
class ColumnTerm(ScoreTerm):
    """A ``score_mod`` of the query and one of the first n keys: adds ``table[b, h, q_idx - offset, kv_idx]``.

    table: ``(B, H, Nq, n)``. offset: position of the first query.
    """

    table: Tensor
    offset: int

    engines = ("cpu-band",)

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        queries, columns = self.table.shape[2:]
        added = self.table[b, h, (q_idx - self.offset).clamp(0, queries - 1), kv_idx.clamp(0, columns - 1)]
        return score + added * (kv_idx < columns)


@dataclasses.dataclass(frozen=True, eq=False)
class DistanceTerm(ScoreTerm):
    """A ``score_mod`` of the distance and the query or the key: relative position embeddings.

        term(i, j) = p_i · r_{b(i-j)} + e_j · s_{b(i-j)} + c · k_j

    with a vector p_i per query and e_j per key, table rows r and s for the bucket b of a distance, and a vector c per
    head. Only DeBERTa has e. WavLM's p_i is a gate, and its r_d a number. The path ``cpu-distances`` adds the term in
    memory linear in the tokens. Any other path calls :attr:`written_out`.

    queries: p, ``(B, H, Nq, F)``, multiplied by the factor on q·k; F is 0 without this part.
    table: r, ``(H or 1, W, F)``, for the distances ``-ahead … W - 1 - ahead``; distances outside use the first or the
        last row.
    ahead: the largest distance from a query to a later key that has a table row.
    keys: k, ``(B, H_kv, Nk, D)``. The queries are the last Nq positions.
    content: c, ``(H, D)``, multiplied by the factor on q·k; ``None`` without this part.
    key_vectors: e, ``(B, H, Nk, G)``, multiplied by the factor on q·k; ``None`` without this part.
    key_table: s, ``(H or 1, W, G)``, for the distances of ``table``.
    buckets: b, ``(W,)`` int64: for each of W distances its row in both tables, if the tables have fewer than W rows.
    """

    queries: Tensor
    table: Tensor
    ahead: int
    keys: Tensor
    content: Tensor | None = None
    key_vectors: Tensor | None = None
    key_table: Tensor | None = None
    buckets: Tensor | None = None

    engines = ("cpu-distances",)

    @classmethod
    def of(cls, term: ScoreTerm, q: Tensor, k: Tensor) -> DistanceTerm | None:
        """Convert ``term`` for the path ``cpu-distances``. A :class:`DistanceBias` gets p = 1. ``None`` for other
        terms."""
        if isinstance(term, DistanceBias):
            ones = q.new_ones(1, dtype=term.table.dtype).expand(*q.shape[:3], 1)
            return cls(ones, term.table[..., None], term.ahead, k)
        if isinstance(term, DistanceTerm):
            return term
        return None

    def of_heads(self, heads: Sequence[int], device: torch.device) -> DistanceTerm:
        """The term for ``heads`` only, renumbered from 0, with one key head for each."""
        group = self.queries.shape[1] // self.keys.shape[1]  # query heads that share a key head

        def of_table(table: Tensor) -> Tensor:
            if len(table) == 1:  # one table for all heads
                return table
            return take_heads(table, heads, 0)

        changes = {
            "queries": take_heads(self.queries, heads),
            "table": of_table(self.table),
            "keys": take_heads(self.keys, [head // group for head in heads]),  # one key head per query head
        }
        if self.content is not None:
            changes["content"] = take_heads(self.content, heads, 0)
        if self.key_vectors is not None and self.key_table is not None:
            changes |= {"key_vectors": take_heads(self.key_vectors, heads), "key_table": of_table(self.key_table)}
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def of_sequence(self, row: int, start: int, stop: int) -> DistanceTerm:
        missing = self.keys.shape[2] - self.queries.shape[2]
        one_row = slice(row, row + 1)
        queries = self.queries[one_row, :, max(0, start - missing) : max(0, stop - missing)]
        return self._of_tokens(queries, lambda x: x[one_row, :, start:stop])

    def moved(self, move: Move, index: Index) -> DistanceTerm:
        missing = self.keys.shape[2] - self.queries.shape[2]
        queries = F.pad(self.queries, (0, 0, missing, 0)) if missing else self.queries
        return self._of_tokens(move(queries, 2), lambda x: move(x, 2))

    def _of_tokens(self, queries: Tensor, take: Callable[[Tensor], Tensor]) -> DistanceTerm:
        """The term with these queries, and with ``take(x)`` for each tensor x with an entry per key."""
        key_vectors = None if self.key_vectors is None else take(self.key_vectors)
        return dataclasses.replace(self, queries=queries, keys=take(self.keys), key_vectors=key_vectors)

    @property
    def written_out(self) -> ScoreMod:
        """The term as lookups of p_i · r_d, e_j · s_d and c · k_j. The first two take ``(B, H, N, table rows)`` memory
        each."""
        # two caches, since products that were made without gradients cannot be used with gradients
        return self._differentiable if torch.is_grad_enabled() else self._constant

    _differentiable = graph_property(lambda self: self._lookup())
    _constant = graph_property(lambda self: self._lookup())

    def _lookup(self) -> ScoreMod:
        """The products of queries and keys with the tables, and the ``score_mod`` that looks them up."""
        query_products = self.queries @ self.table.mT  # p_i · r_d, (B, H, Nq, table rows)
        by_key = key_products = None
        if self.content is not None:  # c · k_j, (B, H, Nk)
            grouped = self.content.unflatten(0, (self.keys.shape[1], -1))  # the heads that share each key head
            by_key = torch.einsum("bgnd,ghd->bghn", self.keys.to(self.content.dtype), grouped).flatten(1, 2)
        if self.key_vectors is not None and self.key_table is not None:
            key_products = self.key_vectors @ self.key_table.mT  # e_j · s_d, (B, H, Nk, table rows)
        offset, ahead, buckets = self.keys.shape[2] - self.queries.shape[2], self.ahead, self.buckets
        distances = self.table.shape[1]
        if buckets is not None:
            distances = len(buckets)

        def mod(score: Tensor, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Tensor:
            table_row = (q_idx - kv_idx + ahead).clamp(0, distances - 1)
            if buckets is not None:
                table_row = buckets[table_row]
            # Padding of a block may have positions outside of the tokens, hence the clamps.
            score = score + query_products[b, h, (q_idx - offset).clamp(0, query_products.shape[2] - 1), table_row]
            if key_products is not None:
                score = score + key_products[b, h, kv_idx.clamp(0, key_products.shape[2] - 1), table_row]
            if by_key is not None:
                score = score + by_key[b, h, kv_idx.clamp(0, by_key.shape[2] - 1)]
            return score

        return mod


@dataclasses.dataclass(frozen=True)
class GridBias(ScoreTerm):
    """A learned ``score_mod`` of the head and the distance on every axis of a grid.

    The windows engine adds it as one mask for all windows of equal size. Every other engine calls it as an ordinary
    ``score_mod``. A call with a grid sets :attr:`grid`.

    table: ``(H, M)`` or ``(H, M + 3)``, M = Π (2·sᵢ - 1): an entry for every distance, query - key, from -(sᵢ - 1) to
        sᵢ - 1 on axis i, the last axis fastest; larger distances are clamped. Three more entries are for pairs (prefix
        token, cell), (cell, prefix token) and (prefix token, prefix token). Without them, nothing is added to these
        pairs.
    sizes: s, cells along each axis.
    grid: the grid of the call's tokens; ``None`` until :meth:`on` sets it.
    """

    table: Tensor
    sizes: tuple[int, ...]
    grid: Grid | None = None

    engines = ("windows",)
    moves_with_tokens = False
    """False, because all sequences of a call have the same grid."""

    def __post_init__(self) -> None:
        distances = math.prod([2 * size - 1 for size in self.sizes])  # torch.compile takes no generator
        if self.table.dim() != 2 or self.table.shape[1] not in (distances, distances + PREFIX_PAIRS):
            raise InputError(
                f"The bias table for {' × '.join(map(str, self.sizes))} cells has shape {tuple(self.table.shape)}, "
                "but must be "
                f"(heads, {distances}), or (heads, {distances + PREFIX_PAIRS}) with entries for prefix tokens."
            )

    @property
    def has_prefix(self) -> bool:
        """Whether the table has entries for pairs with prefix tokens."""
        return self.table.shape[1] > math.prod([2 * size - 1 for size in self.sizes])

    def on(self, grid: Grid | None) -> GridBias:
        """This bias bound to the grid of a call. Raises :class:`InputError` if the call has no grid, or one of another
        rank."""
        if grid is None or grid.rank != len(self.sizes):
            where = "without a grid" if grid is None else f"on another grid, {grid}"
            raise InputError(
                f"A bias for {' × '.join(map(str, self.sizes))} cells was given to a call {where}; pass grid= with "
                f"{len(self.sizes)} sizes."
            )
        if grid == self.grid:
            return self
        return dataclasses.replace(self, grid=grid)

    @property
    def _call_grid(self) -> Grid:
        """The grid that the bias was bound to. Without one, :meth:`on` raises an error."""
        grid = self.on(self.grid).grid
        assert grid is not None
        return grid

    def beyond_grid(self, places: Sequence[Tensor]) -> Tensor:
        """The bias ``(H, N, K)`` for K keys outside the grid, and 0 for prefix tokens. ``places``: the keys'
        coordinates along each axis, ``(K,)`` each."""
        grid = self._call_grid
        tokens = torch.arange(grid.length, device=places[0].device)[:, None]
        distances = [query - key for query, key in zip(grid.coordinates(tokens), places, strict=True)]
        return self.over(self.entries(distances)).masked_fill(tokens < grid.prefix, 0)

    def __add__(self, other: GridBias) -> GridBias:
        """The sum of two biases for the same sizes."""
        return dataclasses.replace(self, table=self.table + other.table)

    def of_heads(self, heads: Sequence[int], device: torch.device) -> GridBias:
        return dataclasses.replace(self, table=self.table[list(heads)])

    def entries(self, distances: Sequence[Tensor]) -> Tensor:
        """Table indices for distances, query - key, on every axis. The tensors broadcast."""
        index: Any = 0
        for distance, size in zip(distances, self.sizes, strict=True):
            index = index * (2 * size - 1) + distance.clamp(1 - size, size - 1) + (size - 1)
        return index

    def over(self, entries: Tensor) -> Tensor:
        """The bias ``(H, …)`` at table indices ``entries (…)``."""
        return self.table[:, entries.flatten().to(self.table.device)].unflatten(1, entries.shape)

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """The scores with the bias of each pair added. Needs :attr:`grid`."""
        grid = self._call_grid
        distances = [
            torch.as_tensor(q - k) for q, k in zip(grid.coordinates(q_idx), grid.coordinates(kv_idx), strict=True)
        ]
        entries = self.entries(distances)
        if not grid.prefix:
            return score + self.table[h, entries]
        from_prefix, to_prefix = q_idx < grid.prefix, kv_idx < grid.prefix
        if not self.has_prefix:
            return score + self.table[h, entries].masked_fill(from_prefix | to_prefix, 0)
        # The last entries: (prefix token, cell), (cell, prefix token), (prefix token, prefix token).
        first = self.table.shape[1] - PREFIX_PAIRS
        from_prefix_entries = torch.where(to_prefix, first + 2, first)
        from_cell_entries = torch.where(to_prefix, first + 1, entries)
        entries = torch.where(from_prefix, from_prefix_entries, from_cell_entries)
        return score + self.table[h, entries]
