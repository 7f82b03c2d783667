"""Relative key embeddings (Shaw et al. 2018, Self-Attention with Relative Position Representations, equations 2 and 4).

    score(i, j) = q_i · (k_j + a_{clip(j - i, -clip, clip)}) · scale

The embeddings a ``(2·clip + 1, D)`` are shared by the heads of a layer. Values stay as they are: the paper's ablation (table 4) finds no
gain from relative values beside relative keys. Costs ``(B, H, N, 2·clip + 1)`` memory, ``clip + 1`` when causal.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from .base import QueryDependent, Span, exact


class Shaw(QueryDependent):
    """Adds the product of the query with a learned embedding of the clipped distance."""

    name = "shaw"
    summary = "the query's product with a learned embedding of the distance, clipped"
    paper = "Shaw et al. 2018, Self-Attention with Relative Position Representations, eq. 4"
    settings = MappingProxyType({"clip": (16, "distance in tokens beyond which all have one embedding")})

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, settings: Mapping[str, int]) -> None:
        super().__init__(num_heads, head_dim, hidden_size, settings)
        self.keys = nn.Parameter(torch.zeros(2 * self.values["clip"] + 1, head_dim))

    def by_distance(self, q: Tensor, causal: bool, span: Span) -> tuple[Tensor, int]:
        clip = self.values["clip"]
        back, ahead = min(clip, span[0]), min(clip, span[1])
        rows = self.keys.flip(0)[clip - ahead : clip + back + 1]  # by query - key; row clip + d of the paper is key - query = d
        return q.to(exact(q)) @ rows.to(exact(q)).T, ahead
