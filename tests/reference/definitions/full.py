"""Softmax attention over all keys: Vaswani et al. 2017, Attention Is All You Need, equation 1."""

from __future__ import annotations

from random import Random
from typing import Any

from torch import Tensor, nn

from ._loops import Sees, masked_attention


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, global_mask: Tensor | None,
           scaling: float | None, score_mod: Any = None, **_: Any) -> Tensor:  # fmt: skip
    seen = sees(module, k, causal, padding_mask, global_mask)
    return masked_attention(q, k, v, seen, causal=causal, padding_mask=padding_mask, scaling=scaling, score_mod=score_mod)


def sees(module: nn.Module, k: Tensor, causal: bool, padding_mask: Tensor | None, global_mask: Tensor | None) -> Sees:
    return lambda b, h, i, j: True


def draw_options(random: Random, length: int) -> dict[str, Any]:
    return {}
