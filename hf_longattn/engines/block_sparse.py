"""The block-sparse engine: chooses how to visit a pattern on this device, and falls back only to equal, still linear paths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .call import AttentionCall
from .cpu_band import cpu_band
from .dense import dense_attention, same_dtype
from .flex import flex_band
from .pattern import DistanceBias, Pattern
from .plain import blockwise_attention

DENSE_CELLS = 256 * 256
"""Up to this many query-key pairs per head the dense kernel with a mask is faster than any sparse path: measured on CPUs, where the next
paths cost some calls more. It holds on every device: on a GPU so few pairs are one kernel launch, and sparse paths take several."""
DENSE_KEYS = 768
"""Up to this many keys it also is when the band spans them, so that nothing would be left out; measured on CPUs, as above."""


def suits_dense(q_len: int, kv_len: int) -> bool:
    """Whether so few pairs are asked for that a dense call with a mask is the fastest, whatever the pattern."""
    return q_len == 1 or q_len * kv_len <= DENSE_CELLS


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
    if torch.compiler.is_exporting():  # one graph for all lengths, of operations that every runtime has
        mod = pattern.visible_mod(global_mask)
        if not pattern.bounded or _known(kv_len <= min(pattern.left, pattern.left if pattern.causal else pattern.right) + 1):
            return dense_attention(q, k, v, call, mask_mod=mod)
        return blockwise_attention(q, k, v, pattern, call)
    fused = q.device.type == "cpu" and call.dropout == 0.0 and (score_mod is None or isinstance(score_mod, DistanceBias))
    biased = fused and score_mod is not None and not suits_dense(q_len, kv_len)  # the dense kernel would write the bias out for all pairs
    if pattern.covers(q_len, kv_len) and not biased:
        return dense_attention(q, k, v, call)
    if suits_dense(q_len, kv_len) or (kv_len <= min(pattern.width, DENSE_KEYS) and not biased):
        return dense_attention(q, k, v, call, mask_mod=pattern.visible_mod(global_mask))
    if fused:
        left, right = min(pattern.left, kv_len), min(pattern.right, kv_len)
        bias = (score_mod.table, score_mod.ahead) if isinstance(score_mod, DistanceBias) else (None, 0)
        settings = (left, right, pattern.causal, pattern.global_rows, call.scale_for(q.shape[-1]), *bias)
        return cpu_band(*(_inner_contiguous(x) for x in (q, k, v)), call.key_mask, global_mask, *settings)[0]
    if q.device.type == "cuda" and call.dropout == 0.0:
        return flex_band(q, k, v, pattern, call)
    return blockwise_attention(q, k, v, pattern, call)


def _known(condition: Any) -> bool:
    """Whether a comparison of lengths holds for all lengths that a graph is exported for."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # experimental, and needed for exporting only

    return statically_known_true(condition)


def _inner_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
