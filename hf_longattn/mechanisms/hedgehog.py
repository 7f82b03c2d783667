"""Learned exponential features (Zhang et al. 2024, The Hedgehog & the Porcupine, equations 5 and 6).

    φ(x) = [softmax(x W), softmax(-x W)]        o_i = φ_q(q_i) Σ_j φ_k(k_j)ᵀ v_j / φ_q(q_i) Σ_j φ_k(k_j)

Each softmax runs over the features of its half, as in the authors' code (Based, LoLCATs). W (D × feature_dim / 2,
without bias) is learned for the queries and the keys of each head and is initialised as the identity, as in the paper.
If a model's factor on q·k, its ``scaling``, is not D^-½, q and k are each multiplied by (scaling · √D)^½.

In fp32, products of features below exp(-87) underflow, for example those of opposite q and k with norms above about
40. If all products of a query underflow, its output is zeros.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..engines.call import AttentionCall
from .common.base import LayerSizes
from .common.capabilities import About
from .common.feature_map import HeadwiseLinear, LinearMechanism
from .common.options import Options, option
from .common.registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class HedgehogOptions(Options):
    feature_dim: int | None = option(
        None,
        "features per head, both halves together; default: twice the head size",
        "features",
        parity="even",
        most=4096,
    )


@register_mechanism("hedgehog")
class Hedgehog(LinearMechanism):
    about = About(
        summary="a learned exponential feature map, trained to imitate softmax",
        paper="Zhang et al. 2024, The Hedgehog & the Porcupine, eq. 5-6",
        when="you linearise a checkpoint by distillation: its features learn to imitate the weights of softmax "
        "attention",
        engine="linear",
        cost="N·D²",
    )
    capabilities = LinearMechanism.capabilities.but(trains=True, images="any")
    per_head_tensors = ("query_map.weight", "key_map.weight")
    options: HedgehogOptions

    def __init__(self, sizes: LayerSizes, options: HedgehogOptions) -> None:
        super().__init__(sizes, options)
        self.features_per_head = options.feature_dim or 2 * sizes.head_dim
        self.query_map = HeadwiseLinear(sizes, self.features_per_head // 2)
        self.key_map = HeadwiseLinear(sizes, self.features_per_head // 2)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        super().reset_parameters(generator)
        for projection in (self.query_map, self.key_map):
            with torch.no_grad():
                projection.weight.copy_(torch.eye(projection.weight.shape[1], projection.weight.shape[2]))

    def queries(self, q: Tensor, call: AttentionCall) -> Tensor:
        return self._features(self.query_map(self.scaled(q, call)))

    def keys(self, k: Tensor, call: AttentionCall) -> Tensor:
        return self._features(self.key_map(self.scaled(k, call)))

    def _features(self, projected: Tensor) -> Tensor:
        """[softmax(y), softmax(-y)] of projected vectors y, from ``(…, F / 2)`` to ``(…, F)``."""
        halves = torch.cat((projected, -projected), -1).unflatten(-1, (2, -1))
        return halves.softmax(-1).flatten(-2)

    def kernel(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        left = self.scaled(q, call) @ self.query_map.weight.to(q.dtype)
        right = self.scaled(k, call) @ self.key_map.weight.to(k.dtype)
        return left.softmax(-1) @ right.softmax(-1).mT + (-left).softmax(-1) @ (-right).softmax(-1).mT
