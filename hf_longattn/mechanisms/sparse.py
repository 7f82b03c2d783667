"""Softmax over a subset of the keys: a mask over positions, and the pattern by which the block-sparse engine visits it."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ..engines.block_sparse import block_sparse_attention
from ..engines.dense import index_grid, repeat_heads
from ..engines.pattern import MaskMod, Pattern, ScoreMod
from .base import Mechanism, softmax_over


class SparseMechanism(Mechanism):
    """A mechanism that is a ``mask_mod`` over absolute positions of the keys' sequence, combined with padding and causality."""

    engine: ClassVar[str] = "block_sparse"

    @abstractmethod
    def pattern(self, causal: bool) -> Pattern:
        """How the engine visits the visible keys."""

    @abstractmethod
    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        """The definition: ``mask_mod(b, h, q_idx, kv_idx) -> bool`` for broadcastable index tensors (flex_attention's signature)."""

    def resolve_globals(
        self, padding_mask: Tensor | None, global_mask: Tensor | None, shape: tuple[int, int], device: torch.device
    ) -> Tensor | None:
        """The global tokens ``(B, Nk)`` of this call; mechanisms without global tokens have none."""
        return None

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        causal: bool = False,
        padding_mask: Tensor | None = None,
        global_mask: Tensor | None = None,
        scaling: float | None = None,
        dropout_p: float = 0.0,
        score_mod: ScoreMod | None = None,
        seed: int = 0,
    ) -> Tensor:
        return block_sparse_attention(
            q,
            repeat_heads(k, q.shape[1]),
            repeat_heads(v, q.shape[1]),
            self.pattern(causal),
            key_mask=padding_mask,
            global_mask=self.resolve_globals(padding_mask, global_mask, (q.shape[0], k.shape[2]), q.device),
            scaling=scaling,
            dropout_p=dropout_p,
            score_mod=score_mod,
        )

    def visible(
        self,
        q_len: int,
        kv_len: int,
        batch: int,
        device: torch.device,
        *,
        causal: bool,
        padding_mask: Tensor | None,
        global_mask: Tensor | None,
    ) -> Tensor:
        """Which keys each query sees, ``(B, H, Nq, Nk)`` bool (broadcastable)."""
        b, h, q_idx, kv_idx = index_grid(batch, self.num_heads, q_len, kv_len, device)
        tokens = self.resolve_globals(padding_mask, global_mask, (batch, kv_len), device)
        seen = self.mask_mod(causal, tokens)(b, h, q_idx, kv_idx)
        if causal:
            seen = seen & (kv_idx <= q_idx)
        if padding_mask is not None:
            seen = seen & padding_mask[:, None, None, :]
        return seen

    def covers(self, length: int, causal: bool = False) -> bool:
        return self.pattern(causal).covers(length, length)

    def pairs(self, length: int, causal: bool = False) -> int:
        pattern = self.pattern(causal)
        band = length + _clipped_sum(pattern.left, length) + _clipped_sum(pattern.right, length)
        dense = length * (length + 1) // 2 if causal else length * length
        return min(dense, band)

    def dense_weights(
        self,
        q: Tensor,
        k: Tensor,
        *,
        causal: bool = False,
        padding_mask: Tensor | None = None,
        global_mask: Tensor | None = None,
        scaling: float | None = None,
        dropout_p: float = 0.0,
        score_mod: ScoreMod | None = None,
        seed: int = 0,
    ) -> Tensor:
        batch, heads, q_len, head_dim = q.shape
        kv_len = k.shape[2]
        scores = (q @ repeat_heads(k, heads).transpose(-1, -2)) * (head_dim**-0.5 if scaling is None else scaling)
        if score_mod is not None:
            scores = score_mod(scores, *index_grid(batch, heads, q_len, kv_len, q.device))
        seen = self.visible(q_len, kv_len, batch, q.device, causal=causal, padding_mask=padding_mask, global_mask=global_mask)
        return softmax_over(scores, seen.expand(scores.shape))


def _clipped_sum(side: int, length: int) -> int:
    """Keys on one side of the diagonal, summed over all queries: Σ_i min(i, side)."""
    side = min(side, length - 1)
    return side * (side + 1) // 2 + (length - 1 - side) * side
