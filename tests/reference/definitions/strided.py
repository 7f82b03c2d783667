"""Strided attention: Child et al. 2019, Generating Long Sequences with Sparse Transformers, section 4.3.

A^(1)_i = {t, …, i} with t = i - l, here the last w tokens with the query among them, and A^(2)_i = {j : (i - j) mod l = 0}, under one
softmax (the merged head of equation 7). Both ways the window has w/2 tokens on each side. Absolute columns are j mod l = l - 1.
"""

from __future__ import annotations

from random import Random
from typing import Any

from torch import Tensor, nn

from ._loops import Sees, first_tokens, masked_attention


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, global_mask: Tensor | None,
           scaling: float | None, score_mod: Any = None, **_: Any) -> Tensor:  # fmt: skip
    seen = sees(module, k, causal, padding_mask, global_mask)
    return masked_attention(q, k, v, seen, causal=causal, padding_mask=padding_mask, scaling=scaling, score_mod=score_mod)


def sees(module: nn.Module, k: Tensor, causal: bool, padding_mask: Tensor | None, global_mask: Tensor | None) -> Sees:
    window, stride, columns = module.options.window, module.options.stride, module.options.columns
    starts = first_tokens(padding_mask, k.shape[0], k.shape[2])

    def seen(b: int, h: int, i: int, j: int) -> bool:
        near = 0 <= i - j < window if causal else abs(i - j) <= window // 2
        on_stride = (i - j) % stride == 0 if columns == "relative" else (j - starts[b]) % stride == stride - 1
        return near or on_stride

    return seen


def draw_options(random: Random, length: int) -> dict[str, Any]:
    return {
        "window": 2 * random.randint(1, max(1, length // 4)),
        "stride": random.randint(1, length + 3),
        "columns": random.choice(("relative", "absolute")),
    }
