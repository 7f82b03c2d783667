"""Sliding window: Beltagy et al. 2020, Longformer, section 3.1 (window of w/2 tokens on each side; dilation d: gaps of d between its keys).

Causal: Jiang et al. 2023, Mistral 7B, section 2: the last w tokens, i - w < j <= i. Sinks: Xiao et al. 2023, StreamingLLM, section 3.2:
the first tokens are seen by everyone besides. ``left`` and ``right``: so many keys on each side, as NeMo's ``att_context_size``.
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
    options = module.options
    starts = first_tokens(padding_mask, k.shape[0], k.shape[2])
    dilations = [options.dilation] if isinstance(options.dilation, int) else list(options.dilation)

    def seen(b: int, h: int, i: int, j: int) -> bool:
        dilation = dilations[h % len(dilations)]
        steps = (i - j) // dilation
        back = options.window - 1 if causal else options.window // 2
        back = back if options.left is None else options.left
        ahead = 0 if causal else options.window // 2 if options.right is None else options.right
        near = (i - j) % dilation == 0 and -ahead <= steps <= back
        return near or j - starts[b] < options.num_sinks

    return seen


def draw_options(random: Random, length: int) -> dict[str, Any]:
    return {
        "window": 2 * random.randint(1, max(1, length // 2)),
        "left": random.choice((None, None, random.randint(0, length))),
        "right": random.choice((None, None, random.randint(0, length))),
        "num_sinks": random.choice((0, 0, 1, 4)),
        "dilation": random.choice(((1,), (1,), (2,), (3,))),
    }


def draw_options_of_heads(random: Random, heads: int, length: int) -> dict[str, Any]:
    return {"dilation": tuple(random.randint(1, 4) for _ in range(heads))} if random.random() < 0.3 else {}
