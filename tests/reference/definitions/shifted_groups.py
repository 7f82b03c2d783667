"""Shifted groups: Chen et al. 2024, LongLoRA, section 3.2. Groups of g tokens; in the second half of the heads they start half a group
later, and the half groups at the ends of the text are groups for themselves. In eval mode attention is full unless the groups are kept.
"""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._loops import first_tokens, masked_attention


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, scaling: float | None,
           score_mod: Any = None, **_: Any) -> Tensor:  # fmt: skip
    size, heads = module.options.group_size, q.shape[1]
    starts = first_tokens(padding_mask, k.shape[0], k.shape[2])

    def group(b: int, h: int, i: int) -> int:
        place = i - starts[b]
        return place // size if h < heads // 2 else (place + size // 2) // size

    def sees(b: int, h: int, i: int, j: int) -> bool:
        return not module.options.keep_groups or group(b, h, i) == group(b, h, j)

    return masked_attention(q, k, v, sees, causal=causal, padding_mask=padding_mask, scaling=scaling, score_mod=score_mod)


def draw_options(random: Random, length: int) -> dict[str, Any]:
    kept = random.random() < 0.8
    return {
        "group_size": 2 * random.randint(1, length // 2 + 2),
        "keep_groups": kept,
        "wrap": not kept and random.random() < 0.5,
    }


def always_visible(o: Any, h: Tensor, i: Tensor, j: Tensor, causal: bool) -> Tensor:
    shift = torch.where(h >= len(h) // 2, o.group_size // 2, 0)
    return (i + shift) // o.group_size == (j + shift) // o.group_size if o.keep_groups else torch.ones_like(i == j)
