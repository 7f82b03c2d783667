"""The best blocks of keys of each query: Lu et al. 2025, MoBA: Mixture of Block Attention, section 2.2, equations 2 to 6.

A query's affinity to a block is its product with the block's mean key (equation 6); it sees the blocks of the k highest (equation 5), its
own always among them, and no block of the future. With ``per="query_block"`` the mean query of a block chooses for its queries.
"""

from __future__ import annotations

from random import Random
from typing import Any

from torch import Tensor, nn

from ._loops import Sees, first_tokens, masked_attention, real_positions


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, scaling: float | None,
           score_mod: Any = None, **_: Any) -> Tensor:  # fmt: skip
    seen = sees(module, q.detach(), k.detach(), causal, padding_mask)
    return masked_attention(q, k, v, seen, causal=causal, padding_mask=padding_mask, scaling=scaling, score_mod=score_mod)


def sees(module: nn.Module, q: Tensor, k: Tensor, causal: bool, padding_mask: Tensor | None) -> Sees:
    options = module.options
    length, q_len, heads = k.shape[2], q.shape[2], q.shape[1]
    starts = first_tokens(padding_mask, k.shape[0], length)
    chosen: dict[tuple[int, int, int], set[int]] = {}
    for b in range(k.shape[0]):
        members: dict[int, list[int]] = {}
        for j in real_positions(padding_mask, b, length):
            members.setdefault((j - starts[b]) // options.block_size, []).append(j)
        for h in range(heads):
            means = {m: k[b, h * k.shape[1] // heads, tokens].mean(0) for m, tokens in members.items()}
            for own, tokens in members.items():
                for i in tokens:
                    if i < length - q_len:
                        continue
                    rows = [i - length + q_len] if options.per == "query" else [j - length + q_len for j in tokens]
                    query = q[b, h, rows].mean(0)
                    others = [m for m in means if m < own or (m > own and not causal)]
                    others.sort(key=lambda m: (-float(query @ means[m]), m))
                    chosen[b, h, i] = {own, *others[: options.num_blocks - 1]}
    return lambda b, h, i, j: (j - starts[b]) // options.block_size in chosen.get((b, h, i), ())


def draw_options(random: Random, length: int) -> dict[str, Any]:
    return {
        "block_size": random.randint(1, length // 2 + 2),
        "num_blocks": random.randint(1, 5),
        "per": random.choice(("query", "query_block")),
    }


def needs_all_queries(module: nn.Module) -> bool:
    return module.options.per == "query_block"
