"""cosFormer: Qin et al. 2022, Rethinking Softmax in Attention, equations 10 to 13."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._rows import average, heads, together


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, **_: Any) -> Tensor:
    """The weight of key j for query i is ReLU(q_i)·ReLU(k_j) cos(π/2 · (i - j) / M), before they are divided by their sum.

    M is max_length; without it the length of the text, from its first token to its last (the authors' code), or, as a causal row must not
    depend on later tokens, the longest text of the model. A scaling of q·k is a factor of all weights.
    """
    outputs = []
    for head in heads(q, k, v, padding_mask):
        longest = module.options.max_length or (module.max_length if causal else head.length)
        rows = []
        for i, index in enumerate(head.queries):
            seen = head.seen(index, causal)
            cosines = torch.tensor([math.cos(math.pi / 2 * (index - j) / longest) for j in seen], dtype=torch.float64)
            rows.append(average(head.k[seen].relu() @ head.q[i].relu() * cosines, head.v[seen]))
        outputs.append(rows)
    return together(outputs, q)


def draw_options(random: Random, length: int) -> dict[str, Any]:
    return {
        "longest_of_the_model": length + random.choice((0, 20)),
        "max_length": random.choice((None, None, length, length + random.randint(0, 20))),
    }


always_visible = None  # weights of any size
