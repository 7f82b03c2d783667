"""FAVOR+: Choromanski et al. 2021, Rethinking Attention with Performers, equation 5, lemma 1 and section 2.4."""

from __future__ import annotations

from random import Random
from typing import Any

from torch import Tensor, nn

from ._rows import Head, kernel_attention


def phi(x: Tensor, directions: Tensor, kernel: str) -> Tensor:
    """exp(w_m·x - |x|²/2) / √m of lemma 1, or max(w_m·x, 0) / √m, for m directions w (equation 5)."""
    m = directions.shape[0]
    projected = x @ directions.T
    if kernel == "relu":
        return projected.relu() / m**0.5
    return (projected - (x * x).sum(-1, keepdim=True) / 2).exp() / m**0.5


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, scaling: float | None,
           **_: Any) -> Tensor:  # fmt: skip
    """o_i = Σ_j φ(q_i)·φ(k_j) v_j / Σ_j φ(q_i)·φ(k_j), with q and k multiplied by √scale, so that E φ(q)·φ(k) = exp(scale · q·k)."""
    root = (q.shape[-1] ** -0.5 if scaling is None else scaling) ** 0.5
    directions = module.state_dict()["projection"].double()

    def features(head: Head) -> tuple[Tensor, Tensor]:
        return phi(root * head.q, directions, module.options.kernel), phi(root * head.k, directions, module.options.kernel)

    return kernel_attention(q, k, v, padding_mask, causal, features)


def draw_options(random: Random, length: int) -> dict[str, Any]:
    return {
        "num_features": random.choice((1, 3, 8, 20)),
        "kernel": random.choice(("softmax", "relu")),
        "redraw_interval": random.choice((0, 1, 1000)),
        "seed": random.randint(0, 3),
    }
