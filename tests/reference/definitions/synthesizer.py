"""Synthesizer: Tay et al. 2020, Rethinking Self-Attention in Transformer Models, section 3."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._rows import Head, heads, together


def mlp(parts: dict[str, Tensor], name: str, h: int, x: Tensor) -> Tensor:
    """W_2 ReLU(W_1 x + b_1) + b_2 of head h."""
    hidden = (x @ parts[f"{name}.first"][h] + parts[f"{name}.first_bias"][h, 0]).relu()
    return parts[f"{name}.second"][h] @ hidden + parts[f"{name}.second_bias"][h]


def scores(kind: str, parts: dict[str, Tensor], head: Head, i: int, seen: list[int], scale: float) -> Tensor:
    """S_ij of one kind for row i of q and the keys j at the indices ``seen``. Positions count from the first real token."""
    query, keys = head.queries[i] - head.first, torch.tensor(seen) - head.first
    name = f"kinds.{kind}"
    if kind == "dense":  # section 3.1
        return mlp(parts, f"{name}.mlp", head.h, head.q[i])[keys]
    if kind == "factorized_dense":  # section 3.2.2
        columns = parts[f"{name}.tiled.second"].shape[1]
        repeated, tiled = (mlp(parts, f"{name}.{which}", head.h, head.q[i]) for which in ("repeated", "tiled"))
        return repeated[keys // columns] * tiled[keys % columns]
    if kind == "random":  # section 3.2.1
        return parts[f"{name}.matrix"][head.h, query, keys]
    if kind == "factorized_random":  # section 3.2.3
        return parts[f"{name}.columns"][head.h, keys] @ parts[f"{name}.rows"][head.h, query]
    assert kind == "dot_product"
    return scale * head.k[seen] @ head.q[i]


def define(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    padding_mask: Tensor | None,
    scaling: float | None,
    score_mod: Callable[..., Tensor] | None = None,
    **_: Any,
) -> Tensor:
    """o_i = Σ_j softmax_j(Σ_p α_p S_p(i, j)) v_j over the kinds p, with α = softmax of the learned mixing numbers (section 3.3)."""
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    parts = {name: value.double() for name, value in (*module.named_parameters(), *module.named_buffers())}
    kinds = module.options.variant
    alpha = parts["mixing"].softmax(-1) if len(kinds) > 1 else torch.ones(1, dtype=torch.float64)
    outputs = []
    for head in heads(q, k, v, padding_mask):
        rows = []
        for i, index in enumerate(head.queries):
            seen = head.seen(index, causal)
            if index not in head.real:
                rows.append(head.v.new_zeros(head.v.shape[1]))
                continue
            mixed = sum(alpha[p] * scores(kind, parts, head, i, seen, scale) for p, kind in enumerate(kinds))
            if score_mod is not None:
                mixed = score_mod(mixed, *(torch.tensor(x) for x in (head.b, head.h, index, seen)))
            rows.append(mixed.softmax(-1) @ head.v[seen])
        outputs.append(rows)
    return together(outputs, q)


def draw_options(random: Random, length: int) -> dict[str, Any]:
    kinds = ("dense", "factorized_dense", "random", "factorized_random", "dot_product")
    return {
        "variant": tuple(random.sample(kinds, random.randint(1, 3))),
        "longest_of_the_model": length + random.choice((0, 20)),
        "max_length": random.choice((None, None, length + random.randint(0, 20))),
        "hidden": random.choice((None, 1, 5)),
        "factor": random.choice((None, 1, 4)),
        "rank": random.choice((1, 3, 8)),
        "trainable": random.choice((True, False)),
    }
