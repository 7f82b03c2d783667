"""Based's Taylor feature map: Arora et al. 2024, Simple linear attention language models, section 4.1."""

from __future__ import annotations

from random import Random
from typing import Any

from torch import Tensor, nn

from ._rows import Head, average, heads, together


def kernel(module: nn.Module, head: Head, scaling: float | None) -> Tensor:
    """κ = 1 + s + s²/2 with s = (q W_q)·(k W_k) / √d for every query and key, d the projected features (``head_dim``: √D, of the head).

    A scaling other than D^-½ changes s by as much as it changes q·k.
    """
    maps, width = dict(module.named_parameters()), head.q.shape[-1]
    query_map, key_map = (maps[f"{name}_map.weight"][head.h].double() for name in ("query", "key"))
    divisor = query_map.shape[-1] if module.options.scale == "feature_dim" else width
    scale = divisor**-0.5 * (1.0 if scaling is None else scaling * width**0.5)
    s = scale * (head.q @ query_map) @ (head.k @ key_map).T
    return 1 + s + s**2 / 2


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, scaling: float | None,
           **_: Any) -> Tensor:  # fmt: skip
    """o_i = Σ_j κ_ij v_j / Σ_j κ_ij."""
    outputs = []
    for head in heads(q, k, v, padding_mask):
        weights = kernel(module, head, scaling)
        rows = []
        for i, index in enumerate(head.queries):
            seen = head.seen(index, causal)
            rows.append(average(weights[i, seen], head.v[seen]))
        outputs.append(rows)
    return together(outputs, q)


def draw_options(random: Random, length: int) -> dict[str, Any]:
    return {"feature_dim": random.choice((2, 4, 8, 12)), "scale": random.choice(("feature_dim", "head_dim"))}
