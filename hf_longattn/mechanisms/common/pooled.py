"""Pooled keys: means over several tokens' keys and values, in one softmax with the tokens.

Engines get pooled keys after the tokens' keys. In the definition, the weight of a pooled key is spread over its tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...engines.common.call import AttentionCall, middle_of
from ...engines.common.dense import grid_of
from ...engines.common.score_terms import remapped
from .scores import softmax_over


class PooledKeys(NamedTuple):
    """M pooled keys. ``real`` and ``position`` may have size 1 in the batch and head axes."""

    keys: Tensor
    """``(B, H, M, D)``"""
    values: Tensor
    """``(B, H, M, D)``"""
    real: Tensor
    """Whether a pool has any token, ``(B, H, M)`` bool. If this differs by head, :meth:`appended` does not mask empty pools; the caller
    must leave them out of its key indices."""
    position: Tensor
    """Mean position of the pool's tokens, rounded down, ``(B, H, M)``. Score terms use it as the key's position."""

    def appended(self, k: Tensor, v: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor, AttentionCall]:
        """``k, v (B, H, N, D)`` followed by the pooled keys and values, and the call for them."""
        length, (items, heads, _) = k.shape[2], self.position.shape

        def position(b: Tensor, h: Tensor, kv_idx: Tensor) -> Tensor:
            b, h = (index if size > 1 else torch.zeros_like(index) for index, size in ((b, items), (h, heads)))
            return torch.where(kv_idx < length, kv_idx, self.position[b, h, (kv_idx - length).clamp(min=0)])

        call = call.replace(score_mod=remapped(call.score_mod, keys=position))
        if call.key_mask is not None:
            real = self.real[:, 0] if self.real.shape[1] == 1 else torch.ones_like(self.real[:, 0])
            call = call.with_mask(torch.cat([call.key_mask, real], 1))
        return torch.cat([k, self.keys], 2), torch.cat([v, self.values], 2), call


def uniform(members: Tensor, dtype: torch.dtype) -> Tensor:
    """The share of each token in each pool: equal for all ``members (…, N)`` bool of a pool, 0 for other tokens."""
    return softmax_over(torch.zeros_like(members, dtype=dtype), members)


def pooled_weights(q: Tensor, k: Tensor, spread: Tensor, members: Tensor, seen: Tensor, pools_seen: Tensor, call: AttentionCall) -> Tensor:
    """The definition: weights ``(B, H, Nq, Nk)`` of a softmax over tokens and pools.

    Args:
        q, k: ``(B, H, Nq, D)`` and ``(B, H, Nk, D)``.
        spread: ``(B, H, M, Nk)``, the share of each token in each pool. A pool's shares sum to 1, or to 0 if it is empty.
        members: ``(B, H, M, Nk)`` bool, the tokens of each pool.
        seen, pools_seen: which tokens and pools each query sees, broadcastable to ``(B, H, Nq, Nk)`` and ``(B, H, Nq, M)``.
    """
    scores, pooled = (q @ keys.transpose(-1, -2) * call.scale_for(q.shape[-1]) for keys in (k, spread @ k))
    if call.score_mod is not None:
        b, h, q_idx, kv_idx = grid_of(q, k)
        scores = call.score_mod(scores, b, h, q_idx, kv_idx)
        pooled = call.score_mod(pooled, b, h, q_idx, middle_of(members)[:, :, None])
    seen = torch.cat([seen.expand(scores.shape), pools_seen.expand(pooled.shape)], -1)
    weights = softmax_over(torch.cat([scores, pooled], -1), seen)
    return weights[..., : k.shape[2]] + weights[..., k.shape[2] :] @ spread
