"""Functions for writing definitions: scores, visible pairs, softmax, padding and dropout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...engines.call import AttentionCall
from ...engines.dense import grid_of, index_grid, repeat_heads, softmax_beside


def scaled_scores(q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
    """``q·k · scale`` for all pairs, with the call's score term applied, ``(B, H, Nq, Nk)``."""
    scores = (q @ repeat_heads(k, q.shape[1]).transpose(-1, -2)) * call.scale_for(q.shape[-1])
    return scores if call.score_mod is None else call.score_mod(scores, *grid_of(q, k))


def visible_to_all(q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
    """Mask of the pairs that causality and padding leave visible, ``(B or 1, 1, Nq, Nk)`` bool."""
    _, _, q_idx, kv_idx = index_grid(1, 1, q.shape[2], k.shape[2], q.device)
    seen = (kv_idx <= q_idx) if call.causal else (kv_idx >= 0).expand(1, 1, q.shape[2], -1)
    return seen if call.key_mask is None else seen & call.key_mask[:, None, None, :]


def softmax_over(scores: Tensor, visible: Tensor, sink_scores: Tensor | None = None) -> Tensor:
    """Softmax over the last axis of ``scores (B, H, …)`` where ``visible``; rows that see nothing are zeros.

    sink_scores: ``(H,)``, a further column of scores, whose weights are left out of the result.
    """
    weights = softmax_beside(scores.masked_fill(~visible, float("-inf")), sink_scores)
    return torch.where(visible.any(-1, keepdim=True), weights, torch.zeros((), dtype=weights.dtype, device=weights.device))


def normalised(weights: Tensor) -> Tensor:
    """Non-negative ``weights (…, Nk)`` divided by their row sums; rows of zeros stay zeros."""
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total == 0, 1.0, total)


def pad_queries(q: Tensor, length: int) -> Tensor:
    """``q (B, H, Nq, D)``, the last queries of a sequence, padded in front with zeros to ``length`` tokens."""
    missing = length - q.shape[2]
    return F.pad(q, (0, 0, missing, 0)) if missing else q


def drop_keys(v: Tensor, dropout_p: float) -> Tensor:
    """Values ``(B, H, Nk, D)`` after dropout of whole keys. For mechanisms without a weight matrix to apply dropout to."""
    return v * F.dropout(v.new_ones(*v.shape[:3], 1), dropout_p) if dropout_p else v
