"""Chunks with a limited past: Zhang et al. 2020, Unified Streaming and Non-streaming Two-pass End-to-end Model for Speech Recognition.

A chunk reads itself and n chunks before it, as with transformers' ``chunked_limited`` mask (NVIDIA's FastConformer).
"""

from __future__ import annotations

from random import Random
from typing import Any

from torch import Tensor, nn

from ._loops import Sees, first_tokens, masked_attention
from ._visible import near_blocks


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, global_mask: Tensor | None,
           scaling: float | None, score_mod: Any = None, **_: Any) -> Tensor:  # fmt: skip
    seen = sees(module, k, causal, padding_mask, global_mask)
    return masked_attention(q, k, v, seen, causal=causal, padding_mask=padding_mask, scaling=scaling, score_mod=score_mod)


def sees(module: nn.Module, k: Tensor, causal: bool, padding_mask: Tensor | None, global_mask: Tensor | None) -> Sees:
    size, chunks = module.options.chunk_size, module.options.left_chunks
    starts = first_tokens(padding_mask, k.shape[0], k.shape[2])

    def seen(b: int, h: int, i: int, j: int) -> bool:
        begin = (i - starts[b]) // size * size  # of the query's chunk
        return begin - chunks * size <= j - starts[b] < begin + size

    return seen


def draw_options(random: Random, length: int) -> dict[str, Any]:
    return {"chunk_size": random.randint(1, length + 2), "left_chunks": random.randint(0, 4)}


def always_visible(o: Any, h: Tensor, i: Tensor, j: Tensor, causal: bool) -> Tensor:
    return near_blocks(o.chunk_size, i, j, before=o.left_chunks)
