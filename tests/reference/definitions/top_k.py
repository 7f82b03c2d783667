"""The k best keys of each query: Gupta et al. 2021, Memory-efficient Transformers via Top-k Attention, section 2.

softmax over topk(Q Kᵀ): all other scores are taken as -infinity. Of equal scores the earlier key is kept.
"""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._loops import real_positions, scores_of


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, scaling: float | None,
           score_mod: Any = None, **_: Any) -> Tensor:  # fmt: skip
    batch, heads, q_len, _width = q.shape
    length = k.shape[2]
    out = torch.zeros(q.shape, dtype=torch.float64)
    for b in range(batch):
        real = real_positions(padding_mask, b, length)
        for h in range(heads):
            keys, values = k[b, h * k.shape[1] // heads], v[b, h * k.shape[1] // heads]
            for row in range(q_len):
                i = length - q_len + row
                allowed = [j for j in real if j <= i or not causal]
                if i not in real:
                    continue
                scores = scores_of(q[b, h, row], keys[allowed], allowed, scaling=scaling, score_mod=score_mod, b=b, h=h, i=i)
                best = sorted(range(len(allowed)), key=lambda n: (-float(scores[n].detach()), n))[: module.options.num_keys]
                out[b, h, row] = torch.softmax(scores[best], 0) @ values[[allowed[n] for n in best]]
    return out


def draw_options(random: Random, length: int) -> dict[str, Any]:
    return {"num_keys": random.randint(1, length + 2)}
