"""DeBERTa's disentangled relative positions (He et al. 2021) as a term of the scores."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..engines.common.score_terms import DistanceTerm, take_heads


def disentangled(q: Tensor, k: Tensor, by_query: Tensor | None, by_key: Tensor | None, scaling: float, buckets: Tensor) -> DistanceTerm:
    """DeBERTa's two relative score terms. A table is ``None`` if the model lacks its term.

    The scores are, with i the query, j the key and δ(i - j) the bucket of their distance (He et al. 2021, equation 4):

        (q_i · k_j + q_i · P^k_δ(i-j) + k_j · P^q_δ(i-j)) / sqrt(D · number of terms)

    Args:
        q, k: ``(B, H, Nq, D)`` and ``(B, H, N, D)``.
        by_query, by_key: P^k and P^q, ``(H, buckets, D)``.
        buckets: δ of the distances ``-ahead … ahead``. Other distances are clamped to this range.
    """

    def rebuild(q: Tensor, k: Tensor, heads: Sequence[int]) -> DistanceTerm:
        first, second = (None if table is None else take_heads(table, heads, 0) for table in (by_query, by_key))
        return disentangled(q, k, first, second, scaling, buckets)

    queries, table, of_keys = q * scaling, by_query, None if by_key is None else k * scaling
    if table is None:  # vectors of width 0
        assert by_key is not None
        queries, table = queries[..., :0], by_key[..., :0]
    return DistanceTerm(queries, table, len(buckets) // 2, k, of_keys=of_keys, key_table=by_key, buckets=buckets, rebuild=rebuild)
