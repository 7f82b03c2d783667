"""Linear attention: Katharopoulos et al. 2020, Transformers are RNNs, equation 4, with the feature map of equation 7."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._rows import Head, kernel_attention, share


def phi(x: Tensor, feature_map: str) -> Tensor:
    """elu(x) + 1 (equation 7), or ReLU."""
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp()) if feature_map == "elu" else torch.where(x > 0, x, 0)


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, scaling: float | None,
           **_: Any) -> Tensor:  # fmt: skip
    """o_i = Σ_j φ(q_i)·φ(k_j) v_j / Σ_j φ(q_i)·φ(k_j)."""
    factor = share(scaling, q.shape[-1])

    def features(head: Head) -> tuple[Tensor, Tensor]:
        return phi(factor * head.q, module.options.feature_map), phi(factor * head.k, module.options.feature_map)

    return kernel_attention(q, k, v, padding_mask, causal, features)


def draw_options(random: Random, length: int) -> dict[str, Any]:
    return {"feature_map": random.choice(("elu", "relu"))}
