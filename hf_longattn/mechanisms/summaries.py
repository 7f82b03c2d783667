"""One key and one value that stand for a block of tokens: the mean, or an average weighed by attention.

With p the weights of a block's real tokens, a summary is  k̄ = Σ_j p_j k_j,  v̄ = Σ_j p_j v_j, where

    mean:       p_j = 1 / (real tokens of the block)
    attention:  p = softmax_j(m · k_j · scale)  with m the mean key of the block

The second is the conditional expectation over a region of Combiner (Ren et al. 2021, section 3.1), whose region query is here the mean
of the keys instead of the queries, so that what decoding caches is enough to make it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines.dense import products
from ..engines.pattern import ScoreMod
from .base import softmax_over


class Summaries(NamedTuple):
    """M blocks' summaries."""

    keys: Tensor
    """``(B, H, M, D)``"""
    values: Tensor
    """``(B, H, M, D)``"""
    real: Tensor
    """Which blocks have a real token, ``(B or 1, M)``."""
    position: Tensor
    """Mean position of each block's real tokens, rounded down, ``(B or 1, M)``: where a score term meets the summary."""


def summarise(k: Tensor, v: Tensor, padding_mask: Tensor | None, size: int, by_attention: bool, scale: float) -> Summaries:
    """Summaries of the blocks of ``size`` tokens of ``k, v (B, H, N, D)``; padding ``(B, N)`` never enters one."""
    length = k.shape[2]
    count = -(-length // size)
    real = torch.ones(1, length, dtype=torch.bool, device=k.device) if padding_mask is None else padding_mask
    real = F.pad(real, (0, count * size - length)).unflatten(1, (count, size))
    k_blocks, v_blocks = (F.pad(x, (0, 0, 0, count * size - length)).unflatten(2, (count, size)) for x in (k, v))
    places = torch.arange(count * size, device=k.device).view(count, size)
    position = (real * places).sum(-1) // real.sum(-1).clamp(min=1)
    keys, values = pool_blocks(k_blocks, v_blocks, real, by_attention, scale)
    return Summaries(keys, values, real.any(-1), position)


def pool_blocks(k: Tensor, v: Tensor, real: Tensor, by_attention: bool, scale: float) -> tuple[Tensor, Tensor]:
    """k̄ and v̄, ``(B, H, M, D)``, of blocks ``k, v (B, H, M, size, D)`` with ``real (B or 1, M, size)``."""
    precise = torch.promote_types(k.dtype, torch.float32)
    weights = (real.to(precise) / real.sum(-1, keepdim=True).clamp(min=1))[:, None].expand(*k.shape[:2], -1, -1)
    if by_attention:
        mean = _average(weights, k.to(precise))
        scores = products(mean[..., None, :], k)[..., 0, :] * scale
        weights = softmax_over(scores, real[:, None])
    return _average(weights, k), _average(weights, v)


def _average(weights: Tensor, blocks: Tensor) -> Tensor:
    """Tokens ``(B, H, M, size, D)`` averaged by ``weights (B, H, M, size)``, in the tokens' dtype."""
    return (weights[..., None, :].to(blocks.dtype) @ blocks)[..., 0, :]


def at_summaries(score_mod: ScoreMod | None, length: int, position: Tensor) -> ScoreMod | None:
    """``score_mod`` for keys of which those from ``length`` on are summaries at ``position (B or 1, M)``."""
    if score_mod is None:
        return None

    def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        item = b if position.shape[0] > 1 else torch.zeros_like(b)
        place = position[item, (kv_idx - length).clamp(min=0)]
        return score_mod(score, b, h, q_idx, torch.where(kv_idx < length, kv_idx, place))

    return mod
