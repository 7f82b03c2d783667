"""The k best keys of each query: Gupta et al. 2021, Memory-efficient Transformers via Top-k Attention, section 2.

softmax over topk(Q Kᵀ): all other scores are taken as -infinity. Of equal scores the earlier key is kept.
"""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._loops import scores_of
from ._rows import heads, together


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, scaling: float | None,
           score_mod: Any = None, **_: Any) -> Tensor:  # fmt: skip
    outputs = []
    for head in heads(q, k, v, padding_mask):
        rows = []
        for row, i in enumerate(head.queries):
            allowed = head.seen(i, causal)
            if i not in head.real:
                rows.append(torch.zeros(q.shape[-1], dtype=torch.float64))
                continue
            scores = scores_of(head.q[row], head.k[allowed], allowed, scaling=scaling, score_mod=score_mod, b=head.b, h=head.h, i=i)
            best = sorted(range(len(allowed)), key=lambda n: (-float(scores[n].detach()), n))[: module.options.num_keys]
            rows.append(torch.softmax(scores[best], 0) @ head.v[[allowed[n] for n in best]])
        outputs.append(rows)
    return together(outputs, q)


def draw_options(random: Random, length: int) -> dict[str, Any]:
    return {"num_keys": random.randint(1, length + 2)}
