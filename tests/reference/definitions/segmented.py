"""Attention inside blocks: Qiu et al. 2020, BlockBERT, section 3 (a query sees the block of keys that its permutation gives it).

``none`` is its identity permutation, ``previous`` joins identity and shift under one softmax. ``pooled`` and ``attention`` see each other
block as one key and value: Ren et al. 2021, Combiner, sections 3.1 and 4.1, an expectation over a region with weights p_j, here 1/n or the
softmax of the keys' products with their mean. To a score term a summary stands at the mean position of its tokens,
rounded down.
"""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._loops import Sees, first_tokens, is_real, masked_attention, real_positions, scores_of


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, scaling: float | None,
           score_mod: Any = None, **_: Any) -> Tensor:  # fmt: skip
    size, integration = module.options.block_size, module.options.integration
    length = k.shape[2]
    starts = first_tokens(padding_mask, k.shape[0], length)

    def block(b: int, i: int) -> int:
        return (i - starts[b]) // size

    if integration in ("none", "previous"):
        seen = sees(module, k, causal, padding_mask)
        return masked_attention(q, k, v, seen, causal=causal, padding_mask=padding_mask, scaling=scaling, score_mod=score_mod)

    batch, heads, q_len, width = q.shape
    scale = width**-0.5 if scaling is None else scaling
    out = torch.zeros(q.shape, dtype=torch.float64)
    for b in range(batch):
        members: dict[int, list[int]] = {}
        for j in real_positions(padding_mask, b, length):
            members.setdefault(block(b, j), []).append(j)
        for h in range(heads):
            keys, values = k[b, h * k.shape[1] // heads], v[b, h * k.shape[1] // heads]
            summaries = {}
            for m, tokens in members.items():
                logits = keys[tokens] @ keys[tokens].mean(0) * scale if integration == "attention" else torch.zeros(len(tokens))
                p = torch.softmax(logits.double(), 0)
                summaries[m] = (p @ keys[tokens], p @ values[tokens])
            for row in range(q_len):
                i = length - q_len + row
                if not is_real(padding_mask, b, i):
                    continue
                own = block(b, i)
                tokens = [j for j in members[own] if j <= i or not causal]
                others = [m for m in members if m < own or (m > own and not causal)]
                places = tokens + [sum(members[m]) // len(members[m]) for m in others]
                met = torch.cat([keys[tokens], *(summaries[m][0][None] for m in others)])
                seen = torch.cat([values[tokens], *(summaries[m][1][None] for m in others)])
                scores = scores_of(q[b, h, row], met, places, scaling=scaling, score_mod=score_mod, b=b, h=h, i=i)
                out[b, h, row] = torch.softmax(scores, 0) @ seen
    return out


def sees(module: nn.Module, k: Tensor, causal: bool, padding_mask: Tensor | None, global_mask: Tensor | None = None) -> Sees:
    """The mask of ``none`` and ``previous``."""
    size, reach = module.options.block_size, int(module.options.integration == "previous")
    starts = first_tokens(padding_mask, k.shape[0], k.shape[2])
    return lambda b, h, i, j: abs((i - starts[b]) // size - (j - starts[b]) // size) <= reach


def draw_options(random: Random, length: int) -> dict[str, Any]:
    return {
        "block_size": random.randint(1, length + 2),
        "integration": random.choice(("none", "previous", "pooled", "attention")),
    }
