"""Hedgehog: Zhang et al. 2024, The Hedgehog & the Porcupine, equations 5 and 6, with the softmax of the authors' code (Based, LoLCATs)."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._rows import Head, kernel_attention, share


def phi(x: Tensor, weight: Tensor, feature_softmax: str) -> Tensor:
    """exp([x W, -x W]) as printed (``none``), over the sum of each half as in the authors' code (``halves``), or over the sum of all."""
    mapped = x @ weight
    positive, negative = mapped.exp(), (-mapped).exp()
    if feature_softmax == "halves":
        return torch.cat([positive / positive.sum(-1, keepdim=True), negative / negative.sum(-1, keepdim=True)], -1)
    both = torch.cat([positive, negative], -1)
    return both / both.sum(-1, keepdim=True) if feature_softmax == "joint" else both


def features(module: nn.Module, head: Head, scaling: float | None) -> tuple[Tensor, Tensor]:
    """φ of a head's queries and keys, each with a W of the head's own."""
    maps, factor = dict(module.named_parameters()), share(scaling, head.q.shape[-1])
    query_map, key_map = (maps[f"{name}_map.weight"][head.h].double() for name in ("query", "key"))
    kind = module.options.feature_softmax
    return phi(factor * head.q, query_map, kind), phi(factor * head.k, key_map, kind)


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, scaling: float | None,
           **_: Any) -> Tensor:  # fmt: skip
    """o_i = Σ_j φ_q(q_i)·φ_k(k_j) v_j / Σ_j φ_q(q_i)·φ_k(k_j)."""
    return kernel_attention(q, k, v, padding_mask, causal, lambda head: features(module, head, scaling))


def draw_options(random: Random, length: int) -> dict[str, Any]:
    return {
        "feature_dim": random.choice((None, 2, 6, 8, 16)),
        "feature_softmax": random.choice(("halves", "joint", "none")),
    }
