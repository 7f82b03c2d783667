"""A band around the diagonal and global tokens: a mask over positions, and the pattern by which the block-sparse engine visits it."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from ..engines.block_sparse import block_sparse_attention
from ..engines.dense import repeat_heads
from ..engines.pattern import Pattern, ScoreMod
from ..positions.relative import Span
from .counting import band_pairs, triangle
from .masked import MaskedMechanism


class SparseMechanism(MaskedMechanism):
    """A mechanism whose mask is a band, and global rows and columns where it has them."""

    engine: ClassVar[str] = "block_sparse"

    @abstractmethod
    def pattern(self, causal: bool) -> Pattern:
        """How the engine visits the visible keys."""

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

    def span(self, q_len: int, kv_len: int, causal: bool) -> Span:
        pattern = self.pattern(causal)
        if pattern.has_globals:
            return super().span(q_len, kv_len, causal)
        return min(pattern.left, kv_len - 1), min(pattern.right, q_len - 1)

    def covers(self, length: int, causal: bool = False) -> bool:
        return self.pattern(causal).covers(length, length)

    def pairs(self, length: int, causal: bool = False) -> int:
        pattern = self.pattern(causal)
        return min(triangle(length) if causal else length * length, band_pairs(length, pattern.left, pattern.right))
