"""Recurrent memory transformer: Bulatov et al. 2022, section 3.2. A layer's part is full attention inside one segment.

Memory tokens are tokens of the model's input, and passing them on is the model's work; ``tests/modeling/test_memory_tokens.py`` runs it.
"""

from __future__ import annotations

from random import Random
from typing import Any

from torch import Tensor, nn

from ._loops import first_tokens, masked_attention


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, scaling: float | None,
           score_mod: Any = None, **_: Any) -> Tensor:  # fmt: skip
    segment = module.options.segment_length
    starts = first_tokens(padding_mask, k.shape[0], k.shape[2])

    def sees(b: int, h: int, i: int, j: int) -> bool:
        return (i - starts[b]) // segment == (j - starts[b]) // segment

    return masked_attention(q, k, v, sees, causal=causal, padding_mask=padding_mask, scaling=scaling, score_mod=score_mod)


def draw_options(random: Random, length: int) -> dict[str, Any]:
    memory = random.randint(1, 4)
    return {"segment_length": 2 * memory + random.randint(2, length + 2), "num_memory_tokens": memory}
