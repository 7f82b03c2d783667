"""LoLCATs: Zhang et al. 2024, Low-Rank Linearizing of Large Language Models, equations 6 and 7."""

from __future__ import annotations

from random import Random
from typing import Any

from torch import Tensor, nn

from . import hedgehog, linear, taylor
from ._rows import Head, heads, share, together


class _Inner:
    """The linear mechanism inside a hybrid, by its options and parameters."""

    def __init__(self, module: nn.Module, options: Any) -> None:
        self.options = options
        self.parameters = [(name.removeprefix("linear."), value) for name, value in module.named_parameters() if name.startswith("linear.")]

    def named_parameters(self) -> Any:
        return iter(self.parameters)


def kernel(module: nn.Module, head: Head, scaling: float | None) -> Tensor:
    """κ of every query with every key."""
    choice = module.options.features
    inner = _Inner(module, choice.options)
    if choice.mechanism == "taylor":
        return taylor.kernel(inner, head, scaling)
    if choice.mechanism == "hedgehog":
        phi_q, phi_k = hedgehog.features(inner, head, scaling)
    else:
        factor = share(scaling, head.q.shape[-1])
        phi_q, phi_k = (linear.phi(factor * x, choice.options.feature_map) for x in (head.q, head.k))
    return phi_q @ phi_k.T


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, scaling: float | None,
           **_: Any) -> Tensor:  # fmt: skip
    """Weights γ exp(s_ij - c_i) of the window's keys and κ(q_i, k_j) of the others, c_i the window's largest score, divided by their sum.

    Beside exp(s_ij - c_i), a kernel that stands for exp(s_ij) itself is multiplied by exp(-c_i).
    """
    options = module.options
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    outputs = []
    for head in heads(q, k, v, padding_mask):
        gamma = options.mixing if options.mixing is not None else dict(module.named_parameters())["mixing"][head.h].double().sigmoid()
        weights, rows = kernel(module, head, scaling), []
        for i, index in enumerate(head.queries):
            seen = head.seen(index, causal)
            near = [j for j in seen if (index - j < options.window if causal else abs(index - j) <= options.window / 2)]
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


def draw_options(random: Random, length: int) -> dict[str, Any]:
    hedgehogs = ("hedgehog", "hedgehog:feature_dim=6", "hedgehog:feature_softmax=joint")
    taylors = ("taylor:feature_dim=4", "taylor:feature_dim=8,scale=head_dim")
    return {
        "window": random.choice((1, 2, 3, 4, 9, 16, 2 * length)),
        "features": random.choice((*hedgehogs, *taylors, "linear", "linear:feature_map=relu")),
        "mixing": random.choice((None, 0.3, 1.0)),
    }
