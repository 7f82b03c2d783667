"""A learned span per head: Sukhbaatar et al. 2019, Adaptive Attention Span in Transformers, equations 3 to 5.

m_z(x) = min(max((R + z - x) / R, 0), 1), and a_tr = m_z(t - r) exp(s_tr) / sum_q m_z(t - q) exp(s_tq), over the past, or both ways by the
distance. z is the learned number in [0, 1] times the longest span S.
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
    ramp = module.options.ramp
    spans = dict(module.named_parameters())["span_fraction"].double() * module.options.max_span
    outputs = []
    for head in heads(q, k, v, padding_mask):
        rows = []
        for row, i in enumerate(head.queries):
            allowed = head.seen(i, causal)
            if i not in head.real:
                rows.append(torch.zeros(q.shape[-1], dtype=torch.float64))
                continue
            scores = scores_of(head.q[row], head.k[allowed], allowed, scaling=scaling, score_mod=score_mod, b=head.b, h=head.h, i=i)
            distance = torch.tensor([abs(i - j) for j in allowed])
            weights = ((ramp + spans[head.h] - distance) / ramp).clamp(0, 1) * torch.exp(scores - scores.max())
            rows.append(weights / weights.sum() @ head.v[allowed])
        outputs.append(rows)
    return together(outputs, q)


def draw_options(random: Random, length: int) -> dict[str, Any]:
    longest = random.randint(1, length + 5)
    return {"max_span": longest, "ramp": random.randint(1, 12), "init_span": random.choice((None, random.randint(0, longest)))}


def draw_parameters(module: nn.Module) -> None:
    with torch.no_grad():
        dict(module.named_parameters())["span_fraction"].uniform_(0, 1)
