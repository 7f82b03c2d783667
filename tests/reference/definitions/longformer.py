"""Window and global tokens: Beltagy et al. 2020, Longformer, section 3.1.

A token sees w/2 tokens on each side; a global token sees all and is seen by all. Linear projections for global attention: with
``separate_global`` the rows of global tokens are softmax(Q_g K_gᵀ · scale) V_g with separate projections.
"""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._loops import Sees, masked_attention, real_positions


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, global_mask: Tensor | None,
           scaling: float | None, score_mod: Any = None, hidden_states: Tensor | None = None, **_: Any) -> Tensor:  # fmt: skip
    arguments: Any = {"causal": causal, "padding_mask": padding_mask, "scaling": scaling, "score_mod": score_mod}
    out = masked_attention(q, k, v, sees(module, k, causal, padding_mask, global_mask), **arguments)
    if not module.options.separate_global:
        return out
    batch, heads, length, width = q.shape
    weights = dict(module.named_parameters())

    def projected(name: str) -> Tensor:
        x = hidden_states @ weights[f"separate.{name}.weight"].double().T + weights[f"separate.{name}.bias"].double()
        return x.reshape(batch, length, heads, width).transpose(1, 2)

    rows = masked_attention(projected("query"), projected("key"), projected("value"), lambda b, h, i, j: True, **arguments)
    tokens = torch.tensor(global_tokens(module, k, padding_mask, global_mask))
    return torch.where(tokens[:, None, :, None], rows, out)


def sees(module: nn.Module, k: Tensor, causal: bool, padding_mask: Tensor | None, global_mask: Tensor | None) -> Sees:
    o = module.options
    tokens = global_tokens(module, k, padding_mask, global_mask)
    back = o.left if o.left is not None else o.window - 1 if causal else o.window // 2
    ahead = 0 if causal else o.window // 2 if o.right is None else o.right

    def seen(b: int, h: int, i: int, j: int) -> bool:
        near = j - ahead <= i <= j + back
        return near or tokens[b][i] or tokens[b][j]

    return seen


def global_tokens(module: nn.Module, k: Tensor, padding_mask: Tensor | None, global_mask: Tensor | None) -> list[list[bool]]:
    """Which tokens of each sequence are global: those of the mask, or the option's, which count tokens and no padding."""
    tokens = [[False] * k.shape[2] for _ in range(k.shape[0])]
    for b, of_text in enumerate(tokens):
        for place, i in enumerate(real_positions(padding_mask, b, k.shape[2])):
            of_text[i] = place in module.options.global_tokens if global_mask is None else bool(global_mask[b, i])
    return tokens


def draw_options(random: Random, length: int) -> dict[str, Any]:
    return {
        "window": 2 * random.randint(1, max(1, length // 3)),
        "left": random.choice((None, None, random.randint(0, length))),
        "right": random.choice((None, None, random.randint(0, length))),
        "global_tokens": tuple(sorted(random.sample(range(length), random.randint(0, min(3, length))))),
        "separate_global": random.random() < 0.3,
    }


def needs_all_queries(module: nn.Module) -> bool:
    return module.options.separate_global
