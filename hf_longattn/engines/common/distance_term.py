"""A score term of the distance and the query or the key: relative position embeddings.

    term(i, j) = p_i · r_{b(i-j)} + e_j · s_{b(i-j)} + c · k_j

with a vector p_i per query and e_j per key, rows r and s of two tables for the bucket b of a distance, and a vector c per head. This is
the form of Transformer-XL, Shaw, Conformer, DeBERTa (the only one with e) and WavLM's gated biases (p_i a gate, r_d a number).
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import graph_property
from .call import AttentionCall, BatchTerm, DistanceBias, ScoreMod, TokenTerm, take_heads


@dataclasses.dataclass(frozen=True, eq=False)
class DistanceTerm(BatchTerm):
    """A ``score_mod`` of the distance and the query or the key. The CPU's band engine adds it to its blocks, in memory linear in the
    tokens. Any other engine calls :attr:`written_out`.

    queries: p, ``(B, H, Nq, F)``, multiplied by the factor on q·k; F is 0 without this part.
    table: r, ``(H or 1, W, F)``, for the distances ``-ahead … W - 1 - ahead``; others use the first or the last row.
    ahead: the largest distance with a row from a query to a later key.
    keys: k, ``(B, H_kv, Nk, D)``. The queries are the last Nq positions.
    content: c, ``(H, D)``, multiplied by the factor on q·k; ``None`` without this part.
    of_keys: e, ``(B, H, Nk, G)``, multiplied by the factor on q·k; ``None`` without this part.
    key_table: s, ``(H or 1, W, G)``, for the same distances.
    buckets: b, ``(W,)`` int64: the row of both tables for each distance, if the tables have fewer than W rows.
    """

    queries: Tensor
    table: Tensor
    ahead: int
    keys: Tensor
    content: Tensor | None = None
    of_keys: Tensor | None = None
    key_table: Tensor | None = None
    buckets: Tensor | None = None

    @classmethod
    def of_bias(cls, bias: DistanceBias, q: Tensor, k: Tensor) -> DistanceTerm:
        """A bias by distance as a :class:`DistanceTerm`. p is 1 for each query ``q (B, H, Nq, D)`` of the keys ``k (B, H_kv, Nk, D)``."""
        return cls(q.new_ones(1, dtype=bias.table.dtype).expand(*q.shape[:3], 1), bias.table[..., None], bias.ahead, k)

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return self.written_out(score, b, h, q_idx, kv_idx)

    def of_heads(self, heads: Sequence[int]) -> DistanceTerm:
        chosen, sharing = list(heads), self.queries.shape[1] // self.keys.shape[1]
        return dataclasses.replace(
            self,
            queries=take_heads(self.queries, chosen),
            table=_of_heads(self.table, chosen),
            keys=take_heads(self.keys, [head // sharing for head in chosen]),  # one for each head
            content=None if self.content is None else take_heads(self.content, chosen, 0),
            of_keys=None if self.of_keys is None else take_heads(self.of_keys, chosen),
            key_table=None if self.key_table is None else _of_heads(self.key_table, chosen),
        )

    def of_sequence(self, row: int, start: int, stop: int) -> DistanceTerm:
        missing, at = self.keys.shape[2] - self.queries.shape[2], slice(row, row + 1)
        queries = self.queries[at, :, max(0, start - missing) : max(0, stop - missing)]
        of_keys = None if self.of_keys is None else self.of_keys[at, :, start:stop]
        return dataclasses.replace(self, queries=queries, keys=self.keys[at, :, start:stop], of_keys=of_keys)

    def moved(self, move: Callable[[Tensor, int], Tensor]) -> DistanceTerm:
        missing = self.keys.shape[2] - self.queries.shape[2]
        queries = F.pad(self.queries, (0, 0, missing, 0)) if missing else self.queries
        of_keys = None if self.of_keys is None else move(self.of_keys, 2)
        return dataclasses.replace(self, queries=move(queries, 2), keys=move(self.keys, 2), of_keys=of_keys)

    @graph_property
    def written_out(self) -> ScoreMod:
        """The term as a lookup ``score_mod``: p_i · r_d, e_j · s_d, c · k_j. The first two take ``(B, H, N, rows)`` memory each."""
        by_query, by_key = self.queries @ self.table.mT, self._by_key()
        by_key_and_distance = None if self.of_keys is None or self.key_table is None else self.of_keys @ self.key_table.mT
        offset, ahead, buckets = self.keys.shape[2] - self.queries.shape[2], self.ahead, self.buckets
        distances = len(buckets) if buckets is not None else self.table.shape[1]

        def mod(score: Tensor, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Tensor:
            at = (q_idx - kv_idx + ahead).clamp(0, distances - 1)
            at = at if buckets is None else buckets[at]
            score = score + by_query[b, h, (q_idx - offset).clamp(0, by_query.shape[2] - 1), at]
            if by_key_and_distance is not None:
                score = score + by_key_and_distance[b, h, kv_idx.clamp(0, by_key_and_distance.shape[2] - 1), at]
            return score if by_key is None else score + by_key[b, h, kv_idx.clamp(0, by_key.shape[2] - 1)]

        return mod

    def _by_key(self) -> Tensor | None:
        """c · k_j, ``(B, H, Nk)``."""
        if self.content is None:
            return None
        grouped = self.content.unflatten(0, (self.keys.shape[1], -1))  # the heads that share each key head
        return torch.einsum("bgnd,ghd->bghn", self.keys.to(self.content.dtype), grouped).flatten(1, 2)


class TokenDistanceTerm(TokenTerm):
    """A :class:`DistanceTerm` that can be rebuilt for queries and keys elsewhere in the sequence."""

    @property
    @abstractmethod
    def distance_term(self) -> DistanceTerm:
        """The term of this object's own tokens, built once."""

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return self.distance_term(score, b, h, q_idx, kv_idx)

    def of_heads(self, heads: Sequence[int], device: torch.device) -> TokenDistanceTerm:
        return _DistanceTermOfHeads(self, tuple(heads))


class _DistanceTermOfHeads(TokenDistanceTerm):
    """A term for some of its heads."""

    def __init__(self, term: TokenDistanceTerm, heads: tuple[int, ...]) -> None:
        self.term, self.heads = term, heads

    @graph_property
    def distance_term(self) -> DistanceTerm:
        return self.term.distance_term.of_heads(self.heads)

    def of(self, q: Tensor, k: Tensor, heads: Sequence[int]) -> TokenTerm:
        return self.term.of(q, k, [self.heads[head] for head in heads])


def distance_term_of(score_mod: ScoreMod | None) -> DistanceTerm | None:
    """The :class:`DistanceTerm` of a ``score_mod``; ``None`` if it has another type."""
    if isinstance(score_mod, TokenDistanceTerm):
        return score_mod.distance_term
    return score_mod if isinstance(score_mod, DistanceTerm) else None


def with_terms_written_out(call: AttentionCall) -> AttentionCall:
    """The call with a score term that every engine reads. Build it before a checkpoint, whose recomputation would not build it again."""
    term = distance_term_of(call.score_mod)
    return call if term is None else call.replace(score_mod=term.written_out)


def _of_heads(table: Tensor, heads: list[int]) -> Tensor:
    return table if len(table) == 1 else take_heads(table, heads, 0)
