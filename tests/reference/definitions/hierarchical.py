"""Pooled keys that grow coarser with distance: Zhu & Soricut 2021, H-Transformer-1D, sections 4 and 6 (equations 25 to 29).

Blocks of b tokens are joined two by two from level to level. On level 0 a query meets the tokens of its block and of the two beside it; on
level l, in its block of level l and the two beside it, what it has not met on a lower level, as means of 2^l tokens; on the last level all
the rest. Each pool weighs (its number of tokens) · exp(q · mean key · scale) on its mean value. Queries are not coarsened. To a score term
a pool stands in its middle, or at the last token where the text ends before that.
"""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._loops import first_tokens, real_positions, scores_of


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, scaling: float | None,
           score_mod: Any = None, **_: Any) -> Tensor:  # fmt: skip
    size, levels, pooling = module.options.block_size, module.options.levels, module.options.pooling
    batch, heads, q_len, _ = q.shape
    length = k.shape[2]
    starts = first_tokens(padding_mask, batch, length)

    def level_of(i: int, j: int) -> int:
        """The first level on which the blocks of i and j are the same or neighbours."""
        level = 0
        while level + 1 != levels and abs(i // (size << level) - j // (size << level)) > 1:
            level += 1
        return level

    out = torch.zeros(q.shape, dtype=torch.float64)
    for b in range(batch):
        real = real_positions(padding_mask, b, length)
        for row in range(q_len):
            i = length - q_len + row
            if i not in real:
                continue
            pools: dict[tuple[int, int], list[int]] = {}
            for j in real:
                if j <= i or not causal:
                    level = level_of(i - starts[b], j - starts[b])
                    pools.setdefault((level, (j - starts[b]) >> level), []).append(j)
            counts = torch.tensor([len(pool) for pool in pools.values()], dtype=torch.float64)
            places = [min(starts[b] + (number << level) + (1 << level) // 2, real[-1]) for level, number in pools]
            mean = torch.zeros(len(pools), length, dtype=torch.float64)
            for n, pool in enumerate(pools.values()):
                mean[n, pool] = 1 / len(pool)
            for h in range(heads):
                keys, values = k[b, h * k.shape[1] // heads], v[b, h * k.shape[1] // heads]
                met = torch.stack([keys[pool].amax(0) for pool in pools.values()]) if pooling == "max" else mean @ keys
                scores = scores_of(q[b, h, row], met, places, scaling=scaling, score_mod=score_mod, b=b, h=h, i=i)
                out[b, h, row] = torch.softmax(scores + counts.log(), 0) @ (mean @ values)
    return out


def draw_options(random: Random, length: int) -> dict[str, Any]:
    return {
        "block_size": 2 * random.randint(1, max(1, length // 6)),
        "levels": random.choice((None, None, 1, 2, 3)),
        "pooling": random.choice(("mean", "mean", "max")),
    }
