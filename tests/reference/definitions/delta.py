"""The gated delta rule: Yang et al. 2024, Gated Delta Networks, equation 10, with the gates of Mamba2."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._rows import heads, together


def define(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    padding_mask: Tensor | None,
    scaling: float | None,
    hidden_states: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """S_t = α_t (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ and o_t = e^c · scale · S_tᵀ q_t, token by token; padding leaves S as it is.

    β = σ(x W_β), log α = -exp(A) softplus(x W_α + b), where x is the layer's input or the head's key. c is a number of the head. With
    ``expand``, q and k are SiLU(q W_q) and SiLU(k W_k). The scale is that of the width of the keys that the rule sees, as in the authors'
    code.
    """
    assert causal
    options, learned = module.options, {name: value.double() for name, value in module.named_parameters()}
    outputs = []
    for head in heads(q, k, v, padding_mask):
        queries, keys = head.q, head.k
        if options.expand > 1:
            queries = torch.nn.functional.silu(queries @ learned["query_map.weight"][head.h])
            keys = torch.nn.functional.silu(keys @ learned["key_map.weight"][head.h])
        scale = learned["log_gain"][head.h].exp() * keys.shape[1] ** -0.5 * (1.0 if scaling is None else scaling * q.shape[-1] ** 0.5)
        if options.normalise:
            queries, keys = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (queries, keys))
        state = keys.new_zeros(keys.shape[1], head.v.shape[1])
        rows: dict[int, Tensor] = {}
        for t in range(head.k.shape[0]):
            if t in head.real:
                x = head.k[t] if options.gate_input == "key" else hidden_states[head.b, t].double()
                beta = (x @ learned["rates.beta.weight"][head.h].flatten()).sigmoid()
                alpha = torch.ones_like(beta)
                if options.gate:
                    rate = torch.nn.functional.softplus(x @ learned["rates.decay.weight"][head.h].flatten() + learned["bias"][head.h])
                    alpha = (-learned["log_a"][head.h].exp() * rate).exp()
                held = keys[t] @ state
                state = alpha * (state - beta * torch.outer(keys[t], held)) + beta * torch.outer(keys[t], head.v[t])
            if t in head.queries:
                i = t - head.queries[0]
                rows[i] = scale * queries[i] @ state
        outputs.append([rows[i] for i in range(len(head.queries))])
    return together(outputs, q)


def draw_options(random: Random, length: int) -> dict[str, Any]:
    return {
        "expand": random.choice((1, 1, 2, 3)),
        "gate": random.choice((True, True, False)),
        "gate_input": random.choice(("hidden_states", "key")),
        "normalise": random.choice((True, True, False)),
    }


always_visible = None  # weights of any size
