"""The engine for distance terms, over a band or chunks. The CPU's fused kernel adds the terms in linear memory."""

from __future__ import annotations

import torch
from torch import Tensor

from .call import AttentionCall, Pattern
from .cpu.flash import mask_dtype
from .cpu.softmax import attend_parts
from .dense import repeat_heads, same_dtype
from .score_terms import DistanceTerm


def distance_attention(
    q: Tensor, k: Tensor, v: Tensor, term: DistanceTerm, pattern: Pattern, call: AttentionCall, chunk: int = 0
) -> Tensor:
    """Softmax attention over a band or chunks with distance terms, by the CPU's kernel.

    Args:
        q, k, v: ``(B, H, Nq, D)``, ``(B, H, Nk, D)``; the queries are the last Nq positions.
        pattern: the band and global rows. With chunks, ``left`` counts from a chunk's last query and ``right`` from its first.
        chunk: tokens per chunk; 0 for a band. All queries of a chunk see the same keys. If causal, keys after the query are hidden.
    """
    scale, dtype, kv_len = call.scale_for(q.shape[-1]), mask_dtype(q), k.shape[2]
    learned = [term.queries, term.table, *(x for x in (term.of_keys, term.key_table) if x is not None)]
    q = q if term.content is None else q + (term.content[:, None] / scale).to(q.dtype)
    left, right = (pattern.left, pattern.right) if chunk else (min(pattern.left, kv_len), min(pattern.right, kv_len))
    fixed = term.buckets, call.key_mask, call.global_mask if pattern.has_globals else None
    numbers = term.ahead, left, right, int(pattern.causal), int(pattern.global_rows), chunk
    return attend_parts("distances", q, k, v, scale, [x.to(dtype) for x in learned], fixed, numbers, 0.0, call.sink_scores)


def chunked_distances(q: Tensor, k: Tensor, v: Tensor, term: DistanceTerm, chunk: int, before: int, call: AttentionCall) -> Tensor:
    """Attention within chunks and to the ``before`` tokens in front of each, with a distance term. The first chunk starts at token 0.

    Args:
        q, k, v: ``(B, H, Nq, D)``, ``(B, H_kv, Nk, D)``.
    """
    heads = q.shape[1]
    if torch.is_autocast_enabled(q.device.type):
        q, k, v = same_dtype(q, k, v)
    pattern = Pattern(before + chunk - 1, 0 if call.causal else chunk - 1, call.causal)
    return distance_attention(q, repeat_heads(k, heads), repeat_heads(v, heads), term, pattern, call, chunk)
