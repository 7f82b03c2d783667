"""The block-sparse engine: softmax attention over a band and global tokens, on equal paths for every device."""

from __future__ import annotations

from torch import Tensor

from .call import AttentionCall
from .cpu_band import cpu_band
from .dense import dense_attention, same_dtype
from .dispatch import DENSE, DENSE_MASKED, Facts, choose
from .flex import flex_band
from .pattern import DistanceBias, Pattern
from .plain import blockwise_attention


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    call: AttentionCall,
) -> Tensor:
    """Softmax attention over the keys that ``pattern`` visits.

    Args:
        q, k, v: ``(B, H, Nq, D)`` and ``(B, H, Nk, D)``; the queries are the last Nq positions.
        call: its global mask is used where the pattern has globals; causality is the pattern's.
    Returns:
        ``(B, H, Nq, D)``. Rows of padding are finite and mean nothing.
    """
    q, k, v = same_dtype(q, k, v)
    call = call.replace(causal=pattern.causal, global_mask=call.global_mask if pattern.has_globals else None)
    global_mask, score_mod = call.global_mask, call.score_mod
    q_len, kv_len = q.shape[2], k.shape[2]
    path = choose("band", Facts(q.device.type, q_len, kv_len, call, pattern=pattern))
    if path == DENSE:
        return dense_attention(q, k, v, call)
    if path == DENSE_MASKED:
        return dense_attention(q, k, v, call, mask_mod=pattern.visible_mod(global_mask))
    if path == "cpu-band":
        left, right = min(pattern.left, kv_len), min(pattern.right, kv_len)
        bias = (score_mod.table, score_mod.ahead) if isinstance(score_mod, DistanceBias) else (None, 0)
        settings = (left, right, pattern.causal, pattern.global_rows, call.scale_for(q.shape[-1]), *bias)
        return cpu_band(*(_inner_contiguous(x) for x in (q, k, v)), call.key_mask, global_mask, *settings)[0]
    if path == "flex":
        return flex_band(q, k, v, pattern, call)
    return blockwise_attention(q, k, v, pattern, call)


def _inner_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
