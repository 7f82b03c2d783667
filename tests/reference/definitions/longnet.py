"""Dilated attention: Ding et al. 2023, LongNet: Scaling Transformers to 1,000,000,000 Tokens, sections 2.2 to 2.4.

Branches one by one, each with its own softmax, and then their sum: equations 3 to 6 for the rows that a branch keeps, offsets
s_j = j mod r for head j (section 2.3), and equations 9 and 10, whose α are the branches' shares of all softmax denominators.
"""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._loops import scores_of
from ._rows import heads, together
from ._visible import near_blocks


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, scaling: float | None,
           score_mod: Any = None, **_: Any) -> Tensor:  # fmt: skip
    segments = module.options.segments
    dilations = module.options.dilations or [2**n for n in range(len(segments))]
    outputs = []
    for head in heads(q, k, v, padding_mask):
        rows = []
        for row, i in enumerate(head.queries):
            numerator, denominator = torch.zeros(q.shape[-1], dtype=torch.float64), 0.0
            for w, r in zip(segments, dilations, strict=True):
                place = i - head.first
                kept = [*range(place // w * w + head.h % r, place // w * w + w, r)]
                if i not in head.real or place not in kept:
                    continue
                keys = [j for j in head.seen(i, causal) if j - head.first in kept]
                scores = scores_of(head.q[row], head.k[keys], keys, scaling=scaling, score_mod=score_mod, b=head.b, h=head.h, i=i)
                share = torch.exp(scores).sum()  # s_n
                numerator = numerator + share * (torch.softmax(scores, 0) @ head.v[keys])
                denominator = denominator + share
            rows.append(numerator / denominator if i in head.real else numerator)
        outputs.append(rows)
    return together(outputs, q)


def draw_options(random: Random, length: int) -> dict[str, Any]:
    segments = sorted(random.sample(range(1, length + 4), random.randint(1, 3)))
    dilations = [random.randint(1, 5) for _ in segments]
    dilations[random.randrange(len(segments))] = 1
    return {"segments": segments, "dilations": random.choice((dilations, []))}


def always_visible(o: Any, h: Tensor, i: Tensor, j: Tensor, causal: bool) -> Tensor:
    dilations = o.dilations or [2**n for n in range(len(o.segments))]
    seen = torch.zeros_like(i == j)
    for w, r in zip(o.segments, dilations, strict=True):
        seen = seen | (near_blocks(w, i, j, before=0) & (i % w % r == h % r) & (j % w % r == h % r))
    return seen
