"""The bucketed engine: attention of tokens that meet in rounds of buckets. Each round is one tile of the gathered engine."""

from __future__ import annotations

from torch import Tensor

from .common.bucket_tiles import Rounds
from .common.call import AttentionCall
from .gathered import gathered_attention


def attend_rounds(q: Tensor, k: Tensor, v: Tensor, rounds: Rounds, count_duplicates: bool, call: AttentionCall) -> Tensor:
    """Softmax attention of every query over the keys it meets in ``rounds``: ``(B, H, N, D)``. Zeros where a query meets none.

    Args:
        q, k, v: ``(B, H, N, D)``.
        count_duplicates: whether a key that is met several times counts several times.
        call: gives scale, dropout and score term. The rounds know the padding.
    """
    return gathered_attention(q, k, v, rounds.parts(count_duplicates), call.with_mask(None))
