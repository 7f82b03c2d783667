"""Several masks under one softmax: Child et al. 2019, Generating Long Sequences with Sparse Transformers, section 4.3, equation 7.

attention(X) = W_p · attend(X, ∪_m A^(m)): a key is seen when it is in any of the sets, and counts once.
"""

from __future__ import annotations

from random import Random
from typing import Any

from torch import Tensor, nn

from . import definition_of
from ._loops import Sees, masked_attention


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, global_mask: Tensor | None,
           scaling: float | None, score_mod: Any = None, **_: Any) -> Tensor:  # fmt: skip
    seen = sees(module, k, causal, padding_mask, global_mask)
    return masked_attention(q, k, v, seen, causal=causal, padding_mask=padding_mask, scaling=scaling, score_mod=score_mod)


def sees(module: nn.Module, k: Tensor, causal: bool, padding_mask: Tensor | None, global_mask: Tensor | None) -> Sees:
    masks = [definition_of(member.name).sees(member, k, causal, padding_mask, global_mask) for member in module.members]
    return lambda b, h, i, j: any(mask(b, h, i, j) for mask in masks)


def draw_options(random: Random, length: int) -> dict[str, Any]:
    near = 2 * random.randint(1, max(1, length // 8))
    masks = [
        f"window:window={near},num_sinks={random.randint(0, 3)}",
        f"window:window={near},dilation=2",
        f"strided:window=2,stride={random.randint(1, length)},columns={random.choice(('relative', 'absolute'))}",
        f"fixed:block_size={random.randint(4, length + 4)},num_summary={random.randint(1, 4)}",
        f"segmented:block_size={random.randint(1, length)},integration={random.choice(('none', 'previous'))}",
        f"longformer:window=2,global_tokens={random.randrange(length)}",
    ]
    return {"of": "+".join(random.sample(masks, random.randint(2, 3)))}
