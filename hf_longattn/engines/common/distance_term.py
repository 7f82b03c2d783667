"""A score term that depends on the query and on the distance of the key: relative positions by embeddings of distances.

    term(i, j) = p_i · r_{i-j} + c · k_j

with a vector p_i of each query, a row r_d of a table for each distance d, and a vector c of each head. Transformer-XL, Shaw, Conformer,
DeBERTa's content-to-position term and WavLM's gated biases (p_i a gate, r_d a number) have this form.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import roll_left
from .call import BatchTerm, ScoreMod


@dataclasses.dataclass(frozen=True, eq=False)
class DistanceTerm(BatchTerm):
    """A ``score_mod`` of the query and the distance. The CPU's band engine adds it to its blocks, in memory linear in the tokens; any
    other calls :attr:`written_out`.

    queries: p, ``(B, H, Nq, F)``, times the factor on q·k.
    table: r, ``(H or 1, W, F)``, for the distances ``-ahead … W - 1 - ahead``; those beyond have the first or the last row.
    ahead: the largest distance of a key after its query that has a row.
    keys: k, ``(B, H_kv, Nk, D)``, of which the queries are the last Nq.
    content: c, ``(H, D)``, times the factor on q·k; ``None`` without this part.
    """

    queries: Tensor
    table: Tensor
    ahead: int
    keys: Tensor
    content: Tensor | None = None

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return self.written_out(score, b, h, q_idx, kv_idx)

    def of_heads(self, heads: Sequence[int]) -> DistanceTerm:
        chosen, sharing = list(heads), self.queries.shape[1] // self.keys.shape[1]
        table = self.table if len(self.table) == 1 else self.table[chosen]
        keys = self.keys[:, [head // sharing for head in chosen]]  # one for each head
        return DistanceTerm(self.queries[:, chosen], table, self.ahead, keys, None if self.content is None else self.content[chosen])

    def of_sequence(self, row: int, start: int, stop: int) -> DistanceTerm:
        missing, at = self.keys.shape[2] - self.queries.shape[2], slice(row, row + 1)
        queries = self.queries[at, :, max(0, start - missing) : max(0, stop - missing)]
        return dataclasses.replace(self, queries=queries, keys=self.keys[at, :, start:stop])

    def rolled(self, start: Tensor) -> DistanceTerm:
        missing = self.keys.shape[2] - self.queries.shape[2]
        queries = F.pad(self.queries, (0, 0, missing, 0)) if missing else self.queries
        return dataclasses.replace(self, queries=roll_left(queries, start), keys=roll_left(self.keys, start))

    @functools.cached_property
    def written_out(self) -> ScoreMod:
        """The term as a ``score_mod`` that looks up p_i · r_d, which takes ``(B, H, Nq, W)`` memory, and c · k_j."""
        by_distance, by_key = self.queries @ self.table.transpose(-1, -2), self._by_key()
        offset, ahead = self.keys.shape[2] - self.queries.shape[2], self.ahead

        def mod(score: Tensor, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Tensor:
            row = (q_idx - offset).clamp(0, by_distance.shape[2] - 1)
            score = score + by_distance[b, h, row, (q_idx - kv_idx + ahead).clamp(0, by_distance.shape[3] - 1)]
            return score if by_key is None else score + by_key[b, h, kv_idx.clamp(0, by_key.shape[2] - 1)]

        return mod

    def _by_key(self) -> Tensor | None:
        """c · k_j, ``(B, H, Nk)``."""
        if self.content is None:
            return None
        grouped = self.content.unflatten(0, (self.keys.shape[1], -1))  # the heads that share each key head
        return torch.einsum("bgnd,ghd->bghn", self.keys.to(self.content.dtype), grouped).flatten(1, 2)
