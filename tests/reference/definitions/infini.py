"""Infini-attention: Munkhdalai et al. 2024, Leave No Context Behind, equations 1 to 7 (section 2.2)."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._rows import heads, together
from ._visible import near_blocks


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, scaling: float | None,
           **_: Any) -> Tensor:  # fmt: skip
    """A = sigmoid(β) A_mem + (1 - sigmoid(β)) A_dot, and A_dot where the memory holds nothing.

    A_dot is causal softmax attention inside the segment; A_mem = σ(q) M / σ(q) z, of the memory that the segments before it left.
    """
    assert causal
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    beta = dict(module.named_parameters())["gate"].double()
    segment = module.options.segment_length
    outputs = []
    for head in heads(q, k, v, padding_mask):
        sigma_q, sigma_k = torch.nn.functional.elu(head.q) + 1, torch.nn.functional.elu(head.k) + 1
        memory = head.k.new_zeros(head.k.shape[1], head.v.shape[1])
        norm = head.k.new_zeros(head.k.shape[1])
        rows: dict[int, Tensor] = {}
        for start in range(head.first, head.k.shape[0], segment):
            for i, index in enumerate(head.queries):
                if not start <= index < start + segment:
                    continue
                seen = [j for j in head.real if start <= j <= index]
                if not seen:
                    continue
                local = (scale * head.k[seen] @ head.q[i]).softmax(-1) @ head.v[seen]
                gate = beta[head.h].sigmoid()
                rows[i] = local if start == head.first else gate * (sigma_q[i] @ memory) / (sigma_q[i] @ norm) + (1 - gate) * local
            old, old_norm = memory, norm
            for j in head.real:
                if start <= j < start + segment:
                    written = head.v[j]
                    if module.options.delta_rule and start > head.first:
                        written = written - (sigma_k[j] @ old) / (sigma_k[j] @ old_norm)
                    memory = memory + sigma_k[j][:, None] * written
                    norm = norm + sigma_k[j]
        outputs.append([rows.get(i, head.v.new_zeros(head.v.shape[1])) for i in range(len(head.queries))])
    return together(outputs, q)


def draw_options(random: Random, length: int) -> dict[str, Any]:
    return {"segment_length": random.randint(1, length + 2), "delta_rule": random.choice((False, True))}


def always_visible(o: Any, h: Tensor, i: Tensor, j: Tensor, causal: bool) -> Tensor:
    return near_blocks(o.segment_length, i, j, before=0)
