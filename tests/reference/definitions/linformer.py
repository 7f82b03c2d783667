"""Linformer: Wang et al. 2020, Self-Attention with Linear Complexity, equation 7; sharing and other projections are section 4."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._rows import Head, heads, together


def runs(length: int, pieces: int) -> list[range]:
    """``pieces`` runs of nearly equal length, the shorter ones first; each of one position where there are fewer."""
    pieces = min(length, pieces)
    short, longer = divmod(length, pieces)
    ends, start = [], 0
    for piece in range(pieces):
        stop = start + short + (piece >= pieces - longer)
        ends.append(range(start, stop))
        start = stop
    return ends


def projected(module: nn.Module, head: Head, x: Tensor, name: str) -> Tensor:
    """Eᵀ x (rows, D) for the tokens x of one head. Padding adds nothing; place 0 is the first real token."""
    options, learned = module.options, dict(module.named_parameters())
    if options.projection == "pooling":
        return torch.stack([x[[head.real[place] for place in run]].mean(0) for run in runs(len(head.real), options.rank)])
    matrix = learned.get(f"{name}_projection", learned["key_projection"]).double()
    matrix = matrix[head.h if len(matrix) > 1 else 0]
    if options.projection == "linear":
        places = [j - head.first for j in head.real]
        return torch.stack([matrix[places, row] @ x[head.real] for row in range(options.rank)])
    width, rows = len(matrix), []
    for start in range(head.first, head.first + head.length, width):
        members = [j for j in head.real if start <= j < start + width]
        if members:
            rows.append(sum((matrix[j - start] * x[j] for j in members), torch.zeros_like(x[0])))
    return torch.stack(rows)


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, scaling: float | None,
           **_: Any) -> Tensor:  # fmt: skip
    """o = softmax(q (Eᵀ K)ᵀ · scale) (Fᵀ V)."""
    assert not causal
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    outputs = []
    for head in heads(q, k, v, padding_mask):
        keys, values = projected(module, head, head.k, "key"), projected(module, head, head.v, "value")
        outputs.append([(scale * keys @ head.q[i]).softmax(-1) @ values for i in range(len(head.queries))])
    return together(outputs, q)


def draw_options(random: Random, length: int) -> dict[str, Any]:
    longest = length + random.choice((0, 20))
    return {
        "longest_of_the_model": longest,
        "max_length": random.choice((None, None, longest + random.randint(0, 20))),
        "rank": random.randint(1, length),
        "projection": random.choice(("linear", "convolution", "pooling")),
        "sharing": random.choice(("none", "headwise", "key-value", "layerwise")),
    }
