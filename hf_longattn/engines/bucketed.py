"""The bucketed engine: attention of tokens that meet in rounds of buckets. On CUDA the rounds are heads of one call, elsewhere tiles."""

from __future__ import annotations

from torch import Tensor

from .common.bucket_tiles import Rounds
from .common.call import AttentionCall
from .common.dense import same_dtype
from .cuda.flex_rounds import flex_rounds
from .dispatch import DispatchContext, attempt, choose_rounds
from .gathered import gathered_attention


def attend_rounds(q: Tensor, k: Tensor, v: Tensor, rounds: Rounds, count_duplicates: bool, call: AttentionCall) -> Tensor:
    """Softmax attention of ``q (B, H, N, D)`` over the keys that it meets in ``rounds``, ``(B, H, N, D)``; zeros where it meets none.

    Args:
        k, v: ``(B, H, N, D)``.
        count_duplicates: a key counts as often as it is met.
        call: its scale, dropout and score term; the rounds know the padding.
    """
    call = call.with_mask(None)
    context = DispatchContext(q.device.type, q.shape[2], k.shape[2], call, features=q.shape[3], rounds=rounds.count)
    if choose_rounds(context):
        out, _ = attempt("rounds", context, flex_rounds, *same_dtype(q, k, v), rounds, count_duplicates, call)
        if out is not None:
            return out
    return gathered_attention(q, k, v, rounds.parts(count_duplicates), call)
