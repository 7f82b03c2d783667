"""Learned exponential features (Zhang et al. 2024, The Hedgehog & the Porcupine, equations 5 and 6).

    φ(x) = softmax([x W, -x W])        o_i = φ_q(q_i) Σ_j φ_k(k_j)ᵀ v_j / φ_q(q_i) Σ_j φ_k(k_j)

The softmax runs over the features. W (D × feature_dim / 2) is learned for queries and keys of each head and begins as the identity.
A ``scaling`` other than D^-½ multiplies q and k by (scaling · √D)^½ each.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from .feature_map import At, LinearMechanism
from .learned_heads import HeadwiseLinear
from .linear import relative
from .options import Options, even, option
from .registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class HedgehogOptions(Options):
    feature_dim: int | None = option(None, "features per head, both halves together; none takes twice the head size", "features")

    def check(self) -> None:
        if self.feature_dim is not None:
            even("hedgehog", "feature_dim", self.feature_dim)


@register_mechanism("hedgehog")
class Hedgehog(LinearMechanism):
    """Features that learn to be as spiky as softmax."""

    summary = "a learned exponential feature map, trained to imitate softmax"
    paper = "Zhang et al. 2024, The Hedgehog & the Porcupine, eq. 5-6"
    trains = True
    options_type = HedgehogOptions
    sample: ClassVar[dict[str, Any]] = {}
    options: HedgehogOptions

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None, options: HedgehogOptions) -> None:
        super().__init__(num_heads, head_dim, hidden_size, max_length, options)
        half = self.features_per_head() // 2
        self.query_map = HeadwiseLinear(num_heads, head_dim, half)
        self.key_map = HeadwiseLinear(num_heads, head_dim, half)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """W begins as the identity: the first features are the head's own."""
        for projection in (self.query_map, self.key_map):
            with torch.no_grad():
                projection.weight.copy_(torch.eye(projection.weight.shape[1], projection.weight.shape[2]))

    def features_per_head(self) -> int:
        given = self.options.feature_dim
        return 2 * self.head_dim if given is None else given

    def queries(self, q: Tensor, at: At) -> Tensor:
        return self._features(q, self.query_map, at.scale)

    def keys(self, k: Tensor, at: At) -> Tensor:
        return self._features(k, self.key_map, at.scale)

    def _features(self, x: Tensor, projection: HeadwiseLinear, scale: float) -> Tensor:
        factor = relative(scale, self.head_dim)
        projected = projection(x if factor == 1 else x * factor)
        return torch.cat((projected, -projected), -1).softmax(-1)

    def kernel(self, q: Tensor, k: Tensor, of_q: At, of_k: At) -> Tensor:
        factor = relative(of_q.scale, self.head_dim)
        left, right = q @ self.query_map.weight.to(q.dtype) * factor, k @ self.key_map.weight.to(k.dtype) * factor
        ups, downs = (left.exp(), right.exp()), ((-left).exp(), (-right).exp())
        totals = [(up + down).sum(-1) for up, down in zip(ups, downs, strict=True)]
        return (ups[0] @ ups[1].mT + downs[0] @ downs[1].mT) / (totals[0][..., None] * totals[1][..., None, :])
