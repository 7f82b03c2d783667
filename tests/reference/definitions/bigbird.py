"""Window, global and random blocks: Zaheer et al. 2020, Big Bird, section 2 and appendix D (blocks).

Block I sees, of n blocks, the g at each end, the w around it (h = floor(w/2) on each side) and r random ones; the g blocks at each end see
all. Causal: the g at the beginning, the last w, and r random ones of the past. Appendix D has no random blocks for texts that the other
blocks cover, and transformers' BigBird attends fully up to 2g + w + 2r blocks. Tokens of a mask are global besides (section 2, ETC).

The random blocks are the module's. With ``random_pattern="hf_eval"`` all are the first block, counted on top of what a query sees anyway,
as transformers has it in evaluation.
"""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._loops import first_tokens, masked_attention, real_positions

SEEDS = (0, 5)


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, global_mask: Tensor | None,
           scaling: float | None, score_mod: Any = None, seed: int = 0, **_: Any) -> Tensor:  # fmt: skip
    options = module.options
    size, around, ends, random_blocks = options.block_size, options.num_window_blocks, options.num_global_blocks, options.num_random_blocks
    batch, length = k.shape[0], k.shape[2]
    if options.blocks_over == "text":
        starts = first_tokens(padding_mask, batch, length)
        lasts = [max(real_positions(padding_mask, b, length), default=0) for b in range(batch)]
    else:
        starts, lasts = [0] * batch, [length - 1] * batch
    counts = [(last - start) // size + 1 for start, last in zip(starts, lasts, strict=True)]
    draws = drawn_blocks(module, counts, causal, seed)
    tokens = (torch.zeros(batch, length, dtype=torch.bool) if global_mask is None else global_mask).tolist()
    first_block_again = options.random_pattern == "hf_eval"

    def times(b: int, h: int, i: int, j: int) -> int:
        n, own, other = counts[b], (i - starts[b]) // size, (j - starts[b]) // size
        if causal:
            structure = other < ends or own - around < other <= own
            sees_all = own < ends
        else:
            sees_all = n <= 2 * ends + around + 2 * random_blocks or own < ends or own >= n - ends
            structure = other < ends or other >= n - ends or abs(own - other) <= around // 2
        if sees_all or tokens[b][i] or tokens[b][j]:
            return 1
        if first_block_again:
            hits = random_blocks if other == 0 else 0
        else:
            hits = draws[b % len(draws)][h % len(draws[0])][own].count(other)
        assert first_block_again or hits + structure <= 1, "random blocks are drawn once, and among the others"
        return int(structure) + hits

    return masked_attention(q, k, v, times, causal=causal, padding_mask=padding_mask, scaling=scaling, score_mod=score_mod)


def drawn_blocks(module: nn.Module, counts: list[int], causal: bool, seed: int) -> list[list[list[list[int]]]]:
    """The module's random blocks of every sequence, head and block."""
    return module.blocks(torch.tensor(counts), max(counts), causal, torch.device("cpu"), seed).random.tolist()


def draw_options(random: Random, length: int) -> dict[str, Any]:
    pattern = random.choice(("seeded", "hf_eval"))
    return {
        "block_size": random.randint(1, max(1, length // random.choice((2, 8, 12)))),
        "num_random_blocks": random.randint(0, 3),
        "num_window_blocks": random.choice((1, 3, 5)) if pattern == "seeded" else 3,
        "num_global_blocks": random.randint(0, 2) if pattern == "seeded" else 1,
        "seed": random.randint(0, 9),
        "random_pattern": pattern,
        "blocks_over": random.choice(("text", "text", "input")),
    }
