"""Windows with sinks as StreamingLLM computes them: a cache of unrotated keys, which are rotated anew for every token.

Source: Xiao et al. 2023, StreamingLLM, section 3.2 and its code (mit-han-lab/streaming-llm).
``StartRecentKVCache.evict_for_space`` leaves the first ``start_size`` tokens, and the last ``recent_size`` with the
coming one. ``llama_pos_shift_attention_forward`` stores keys before their rotation, then rotates key n of the cache to
position n, and the query to the last position in the cache.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import AttentionInterface

Rotate = Callable[[Tensor, Tensor], Tensor]
"""Rotates ``x (H, n, D)`` to positions ``(n,)``."""
NAME = "streaming_by_definition"


def attend_from_cache(
    q: Tensor, k: Tensor, v: Tensor, rotate: Rotate, sinks: int, window: int, scale: float
) -> Tensor:
    """The outputs ``(H, N, D)`` of one text, token by token; q, k and v ``(H, N, D)`` are not rotated."""
    cached: list[int] = []
    rows = []
    for token in range(q.shape[1]):
        if len(cached) == sinks + window:
            del cached[sinks]
        cached.append(token)
        places = torch.arange(len(cached))
        scores = rotate(q[:, token, None], places[-1:]) @ rotate(k[:, cached], places).mT * scale
        rows.append(scores.softmax(-1) @ v[:, cached])
    return torch.cat(rows, 1)


@contextmanager
def streaming(model: Any, sizes: Sequence[tuple[int, int]]) -> Iterator[Any]:
    """A model of transformers that attends from such caches to single texts without padding: (sinks, window) of every
    layer."""
    modeling = sys.modules[type(model).__module__]
    rotation, tables = modeling.apply_rotary_pos_emb, list[tuple[Tensor, Tensor]]()

    def leave_unrotated(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        tables[:] = [(cos, sin)]  # of positions 0 to N - 1
        return q, k

    def attend(
        module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        ((cos, sin),) = tables

        def rotate(x: Tensor, places: Tensor) -> Tensor:
            return rotation(x[None], x[None], cos[:, places], sin[:, places])[0][0]

        k, v = (x[0].repeat_interleave(q.shape[1] // x.shape[1], 0) for x in (k, v))
        out = attend_from_cache(
            q[0], k, v, rotate, *sizes[module.layer_idx], q.shape[-1] ** -0.5 if scaling is None else scaling
        )
        return out.transpose(0, 1)[None], None

    AttentionInterface.register(NAME, attend)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        with patch.object(modeling, "apply_rotary_pos_emb", leave_unrotated):
            yield model
    finally:
        model.set_attn_implementation(before)
