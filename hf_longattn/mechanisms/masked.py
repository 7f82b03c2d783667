"""Softmax over a subset of the keys: the definition, a mask over positions combined with padding and causality."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines.block_sparse import block_sparse_attention
from ..engines.dense import index_grid, repeat_heads
from ..engines.pattern import MaskMod, Pattern, ScoreMod
from ..positions.relative import Span
from .base import Mechanism, softmax_over
from .layout import band_pairs, triangle


class MaskedMechanism(Mechanism):
    """A mechanism that is a ``mask_mod`` over positions of the keys' sequence."""

    position_dependent: bool = False
    """Whether the pattern depends on absolute positions (blocks, columns): they are then counted from each sequence's first real
    token, so that padding on the left changes nothing."""

    @abstractmethod
    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        """The definition: ``mask_mod(b, h, q_idx, kv_idx) -> bool`` for broadcastable index tensors (flex_attention's signature)."""

    def for_union(self) -> MaskedMechanism:
        """The form of this mechanism that a union joins: a band without more than global tokens, or parts."""
        return self

    @property
    def is_mask(self) -> bool:
        """Whether the mask is all: softmax over what it leaves, each key once, with the layer's own projections."""
        return type(self).dense_weights is MaskedMechanism.dense_weights

    def resolve_globals(
        self, padding_mask: Tensor | None, global_mask: Tensor | None, shape: tuple[int, int], device: torch.device
    ) -> Tensor | None:
        """The global tokens ``(B, Nk)`` of this call; mechanisms without global tokens have none."""
        return None

    def most_globals(self) -> int:
        """How many tokens are global at most in a call without ``global_mask``."""
        return 0

    def positioned_mod(self, causal: bool, padding_mask: Tensor | None, tokens: Tensor | None) -> MaskMod:
        """``mask_mod`` for indices of the padded sequence."""
        mod = self.mask_mod(causal, tokens)
        if not self.position_dependent or padding_mask is None:
            return mod
        start = first_real(padding_mask)
        return lambda b, h, q_idx, kv_idx: mod(b, h, q_idx - start[b], kv_idx - start[b])

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
        seen = self.positioned_mod(causal, padding_mask, tokens)(b, h, q_idx, kv_idx)
        if causal:
            seen = seen & (kv_idx <= q_idx)
        if padding_mask is not None:
            seen = seen & padding_mask[:, None, None, :]
        return seen

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

    def attend_kept(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_positions: Tensor,
        k_positions: Tensor,
        real: Tensor,
        *,
        scaling: float | None = None,
        dropout_p: float = 0.0,
    ) -> Tensor:
        """Causal attention over keys that a cache has kept.

        Args:
            q: ``(B, H, Nq, D)`` at ``q_positions (B, Nq)``.
            k, v: ``(B, H_kv, S, D)`` at ``k_positions (B, S)``, in any order; slots that are not ``real (B, S)`` are not seen.
        Returns:
            ``(B, H, Nq, D)``.
        """
        seen = self.kept_visible(q_positions, k_positions, real)
        grouped, dtype = k.shape[1] != q.shape[1], q.dtype
        if self.relative is not None:
            distance = q_positions[:, :, None] - k_positions[:, None, :]
            term = self.relative.term(q, k, distance, True, self.scale(scaling))
            wide = torch.promote_types(q.dtype, term.dtype)  # half precision would round the terms of distant keys to whole numbers
            seen = torch.where(seen, term.to(wide), torch.finfo(wide).min)
            q, k, v = q.to(wide), k.to(wide), v.to(wide)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout_p, scale=scaling, enable_gqa=grouped)
        return out.to(dtype)

    def kept_visible(self, q_positions: Tensor, k_positions: Tensor, real: Tensor) -> Tensor:
        """Which kept keys each query sees, ``(B, H or 1, Nq, S)`` bool."""
        b = torch.arange(len(q_positions), device=q_positions.device).view(-1, 1, 1, 1)
        h = torch.arange(self.num_heads, device=q_positions.device).view(1, -1, 1, 1)
        rows, columns = q_positions[:, None, :, None], k_positions[:, None, None, :]
        return self.mask_mod(True, None)(b, h, rows, columns) & (columns <= rows) & real[:, None, None, :]


def first_tokens(count: int, padding_mask: Tensor | None, shape: tuple[int, int], device: torch.device) -> Tensor:
    """The ``count`` positions from each sequence's first real token on, ``(B, Nk)`` bool; padding is never among them."""
    places = torch.arange(shape[1], device=device)[None]
    if padding_mask is None:
        return (places < count).expand(shape)
    return padding_mask & (places < first_real(padding_mask)[:, None] + count)


def first_real(padding_mask: Tensor) -> Tensor:
    """Index of each sequence's first real token, ``(B,)``; 0 where there is none."""
    return padding_mask.int().argmax(-1)


def last_real(padding_mask: Tensor) -> Tensor:
    """Index of each sequence's last real token, ``(B,)``; the last of all where there is none."""
    return padding_mask.shape[-1] - 1 - padding_mask.flip(-1).int().argmax(-1)


class SparseMechanism(MaskedMechanism):
    """A mechanism whose mask is a band, and global rows and columns where it has them."""

    engine: ClassVar[str] = "block_sparse"

    @property
    def position_dependent(self) -> bool:  # type: ignore[override]
        return self.pattern(self.causal is not False).has_globals

    def positioned_mod(self, causal: bool, padding_mask: Tensor | None, tokens: Tensor | None) -> MaskMod:
        return self.mask_mod(causal, tokens)  # a band; the global tokens are given by their indices

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
