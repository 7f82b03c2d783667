"""The bucketed engine: attention of tokens that meet in rounds of buckets, whose runs are tiles of the gathered engine."""

from __future__ import annotations

from torch import Tensor

from .common.bucket_tiles import Rounds
from .common.call import AttentionCall
from .gathered import gathered_attention


def attend_rounds(q: Tensor, k: Tensor, v: Tensor, rounds: Rounds, count_duplicates: bool, call: AttentionCall) -> Tensor:
    """Softmax attention of ``q (B, H, N, D)`` over the keys that it meets in ``rounds``, ``(B, H, N, D)``; zeros where it meets none.

    Args:
        k, v: ``(B, H, N, D)``.
        count_duplicates: a key counts as often as it is met.
        call: its scale, dropout and score term; the rounds know the padding.
    """
    return gathered_attention(q, k, v, rounds.parts(count_duplicates), call.with_mask(None))
