"""DeBERTa's disentangled relative positions (He et al. 2021) as a term of the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..engines.common.batch import graph_property
from ..engines.common.score_terms import DistanceTerm, TokenDistanceTerm


@dataclass(eq=False)
class Disentangled(TokenDistanceTerm):
    """The two relative score terms. The table of a term is ``None`` in a model without it.

    The scores are, with i the query, j the key and δ(i - j) the bucket of their distance (He et al. 2021, equation 4):

        (q_i · k_j + q_i · P^k_δ(i-j) + k_j · P^q_δ(i-j)) / sqrt(D · number of terms)

    q, k: ``(B, H, Nq, D)`` and ``(B, H, N, D)``.
    by_query, by_key: P^k and P^q, ``(H, buckets, D)``.
    buckets: δ of the distances ``-ahead … ahead``. Other distances are clamped to this range.
    """

    q: Tensor
    k: Tensor
    by_query: Tensor | None
    by_key: Tensor | None
    scaling: float
    buckets: Tensor

    def of(self, q: Tensor, k: Tensor, heads: Sequence[int]) -> Disentangled:
        by_query, by_key = (None if table is None else table[list(heads)] for table in (self.by_query, self.by_key))
        return Disentangled(q, k, by_query, by_key, self.scaling, self.buckets)

    @graph_property
    def distance_term(self) -> DistanceTerm:
        queries, keys = self.q * self.scaling, self.k * self.scaling
        by_query, by_key = self.by_query, self.by_key
        if by_query is None:  # vectors of width 0
            assert by_key is not None
            queries, by_query = queries[..., :0], by_key[..., :0]
        of_keys = None if by_key is None else keys
        return DistanceTerm(queries, by_query, len(self.buckets) // 2, self.k, of_keys=of_keys, key_table=by_key, buckets=self.buckets)
