"""Fixed attention: Child et al. 2019, Generating Long Sequences with Sparse Transformers, section 4.3.

A^(1)_i = {j : floor(j/l) = floor(i/l)} and A^(2)_i = {j : j mod l in {t, …, l}} with t = l - c, under one softmax (equation 7).
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
    size, summary = module.options.block_size, module.options.num_summary
    starts = first_tokens(padding_mask, k.shape[0], k.shape[2])

    def seen(b: int, h: int, i: int, j: int) -> bool:
        same_block = (i - starts[b]) // size == (j - starts[b]) // size
        return same_block or (j - starts[b]) % size >= size - summary

    return seen


def draw_options(random: Random, length: int) -> dict[str, Any]:
    size = random.randint(1, length + 3)
    return {"block_size": size, "num_summary": random.randint(1, size)}
