"""Products of features: linear, performer, taylor, hedgehog and hybrid."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._loops import Call, Head, average, heads, kernel_attention, share, together


def phi_linear(x: Tensor, feature_map: str) -> Tensor:
    """elu(x) + 1 (equation 7), or ReLU."""
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp()) if feature_map == "elu" else torch.where(x > 0, x, 0)


def define_linear(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Linear attention: Katharopoulos et al. 2020, Transformers are RNNs, equation 4, with the feature map of equation
    7.

    o_i = Σ_j φ(q_i)·φ(k_j) v_j / Σ_j φ(q_i)·φ(k_j).
    """
    scaling = call.scaling
    factor = share(scaling, q.shape[-1])

    def features(head: Head) -> tuple[Tensor, Tensor]:
        return phi_linear(factor * head.q, module.options.feature_map), phi_linear(
            factor * head.k, module.options.feature_map
        )

    return kernel_attention(q, k, v, call, features)


def draw_options_linear(random: Random, length: int) -> dict[str, Any]:
    return {"feature_map": random.choice(("elu", "relu"))}


def phi_performer(x: Tensor, directions: Tensor, kernel: str) -> Tensor:
    """exp(w_m·x - |x|²/2) / √m of lemma 1, or max(w_m·x, 0) / √m, for m directions w (equation 5)."""
    m = directions.shape[0]
    projected = x @ directions.T
    if kernel == "relu":
        return projected.relu() / m**0.5
    return (projected - (x * x).sum(-1, keepdim=True) / 2).exp() / m**0.5


def define_performer(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """FAVOR+: Choromanski et al. 2021, Rethinking Attention with Performers, equation 5, lemma 1 and section 2.4.

    o_i = Σ_j φ(q_i)·φ(k_j) v_j / Σ_j φ(q_i)·φ(k_j), with q and k multiplied by √scale, so that E φ(q)·φ(k) = exp(scale
    · q·k).
    """
    scaling = call.scaling
    root = (q.shape[-1] ** -0.5 if scaling is None else scaling) ** 0.5
    directions = module.state_dict()["projection"].double()

    def features(head: Head) -> tuple[Tensor, Tensor]:
        return phi_performer(root * head.q, directions, module.options.kernel), phi_performer(
            root * head.k, directions, module.options.kernel
        )

    return kernel_attention(q, k, v, call, features)


def draw_options_performer(random: Random, length: int) -> dict[str, Any]:
    return {
        "num_features": random.choice((1, 3, 8, 20)),
        "kernel": random.choice(("softmax", "relu")),
        "redraw_interval": random.choice((0, 1, 1000)),
        "seed": random.randint(0, 3),
    }


def kernel_taylor(module: nn.Module, head: Head, scaling: float | None) -> Tensor:
    """κ = 1 + s + s²/2 with s = (q W_q)·(k W_k) / √d for every query and key, d the projected features.

    A scaling other than D^-½ changes s by as much as it changes q·k.
    """
    maps, width = dict(module.named_parameters()), head.q.shape[-1]
    query_map, key_map = (maps[f"{name}_map.weight"][head.h].double() for name in ("query", "key"))
    scale = query_map.shape[-1] ** -0.5 * (1.0 if scaling is None else scaling * width**0.5)
    s = scale * (head.q @ query_map) @ (head.k @ key_map).T
    return 1 + s + s**2 / 2


def define_taylor(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Based's Taylor feature map: Arora et al. 2024, Simple linear attention language models, section 4.1.

    o_i = Σ_j κ_ij v_j / Σ_j κ_ij.
    """
    causal, padding_mask, scaling = call.causal, call.padding_mask, call.scaling
    outputs = []
    for head in heads(q, k, v, padding_mask):
        weights = kernel_taylor(module, head, scaling)
        rows = []
        for i, index in enumerate(head.queries):
            seen = head.seen(index, causal)
            rows.append(average(weights[i, seen], head.v[seen]))
        outputs.append(rows)
    return together(outputs, q)


def draw_options_taylor(random: Random, length: int) -> dict[str, Any]:
    return {"feature_dim": random.choice((2, 4, 8, 12))}


def phi_hedgehog(x: Tensor, weight: Tensor) -> Tensor:
    """exp(x W) and exp(-x W), each over its sum, as in the authors' code."""
    mapped = x @ weight
    positive, negative = mapped.exp(), (-mapped).exp()
    return torch.cat([positive / positive.sum(-1, keepdim=True), negative / negative.sum(-1, keepdim=True)], -1)


def features_hedgehog(module: nn.Module, head: Head, scaling: float | None) -> tuple[Tensor, Tensor]:
    """φ of a head's queries and keys, each with a W of the head's own."""
    maps, factor = dict(module.named_parameters()), share(scaling, head.q.shape[-1])
    query_map, key_map = (maps[f"{name}_map.weight"][head.h].double() for name in ("query", "key"))
    return phi_hedgehog(factor * head.q, query_map), phi_hedgehog(factor * head.k, key_map)


def define_hedgehog(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Hedgehog: Zhang et al. 2024, The Hedgehog & the Porcupine, equations 5 and 6, with the softmax of the authors'
    code (Based, LoLCATs).

    o_i = Σ_j φ_q(q_i)·φ_k(k_j) v_j / Σ_j φ_q(q_i)·φ_k(k_j).
    """
    return kernel_attention(q, k, v, call, lambda head: features_hedgehog(module, head, call.scaling))


def draw_options_hedgehog(random: Random, length: int) -> dict[str, Any]:
    return {"feature_dim": random.choice((None, 2, 6, 8, 16))}


class _Inner:
    """The linear mechanism inside a hybrid, by its options and parameters."""

    def __init__(self, module: nn.Module, options: Any) -> None:
        self.options = options
        self.parameters = [
            (name.removeprefix("linear."), value)
            for name, value in module.named_parameters()
            if name.startswith("linear.")
        ]

    def named_parameters(self) -> Any:
        return iter(self.parameters)


def kernel_hybrid(module: nn.Module, head: Head, scaling: float | None) -> Tensor:
    """κ of every query with every key."""
    choice = module.options.features
    inner = _Inner(module, choice.options)
    if choice.mechanism == "taylor":
        return kernel_taylor(inner, head, scaling)
    if choice.mechanism == "hedgehog":
        phi_q, phi_k = features_hedgehog(inner, head, scaling)
    else:
        factor = share(scaling, head.q.shape[-1])
        phi_q, phi_k = (phi_linear(factor * x, choice.options.feature_map) for x in (head.q, head.k))
    return phi_q @ phi_k.T


def define_hybrid(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """LoLCATs: Zhang et al. 2024, Low-Rank Linearizing of Large Language Models, equations 6 and 7.

    Weights γ exp(s_ij - c_i) of the window's keys and κ(q_i, k_j) of the others, c_i the window's largest score,
    divided by their sum.

    Beside exp(s_ij - c_i), a kernel that stands for exp(s_ij) itself is multiplied by exp(-c_i).
    """
    causal, padding_mask, scaling = call.causal, call.padding_mask, call.scaling
    options = module.options
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    outputs = []
    for head in heads(q, k, v, padding_mask):
        gamma = dict(module.named_parameters())["mixing"][head.h].double().sigmoid()
        weights, rows = kernel_hybrid(module, head, scaling), []
        for i, index in enumerate(head.queries):
            seen = head.seen(index, causal)
            near = [
                j for j in seen if (index - j < options.window if causal else abs(index - j) <= options.window / 2)
            ]
            far = [j for j in seen if j not in near]
            if not near:
                rows.append(head.v.new_zeros(head.v.shape[1]))  # of padding
                continue
            scores = scale * head.k[near] @ head.q[i]
            soft, linear_part = gamma * (scores - scores.max()).exp(), weights[i, far]
            if options.features.mechanism == "taylor":
                linear_part = linear_part * (-scores.max()).exp()
            total = soft.sum() + linear_part.sum()
            rows.append((soft @ head.v[near] + linear_part @ head.v[far]) / total)
        outputs.append(rows)
    return together(outputs, q)


def draw_options_hybrid(random: Random, length: int) -> dict[str, Any]:
    hedgehogs = ("hedgehog", "hedgehog:feature_dim=6")
    taylors = ("taylor:feature_dim=4", "taylor:feature_dim=8")
    return {
        "window": random.choice((1, 2, 3, 4, 9, 16, 2 * length)),
        "features": random.choice((*hedgehogs, *taylors, "linear", "linear:feature_map=relu")),
    }
