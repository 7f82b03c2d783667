"""Transformer-XL's recurrence: Dai et al. 2019, Attentive Language Models beyond a Fixed-Length Context, section 3.2."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._loops import first_tokens, is_real, scores_of


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, scaling: float | None,
           score_mod: Any = None, **_: Any) -> Tensor:  # fmt: skip
    """A segment of S tokens sees itself and the M tokens before it, whose states are constants: h̃ = [SG(h_τ) ∘ h_τ+1]."""
    segment, memory, bptt = module.options.segment_length, module.options.memory_length, module.options.bptt
    batch, heads, q_len, width = q.shape
    kv_len, group = k.shape[2], heads // k.shape[1]
    starts = first_tokens(padding_mask, batch, kv_len)
    out = []
    for b in range(batch):
        for h in range(heads):
            keys, values = k[b, h // group], v[b, h // group]
            for row in range(q_len):
                i = kv_len - q_len + row
                begin = starts[b] + (i - starts[b]) // segment * segment
                end = i if causal else begin + segment - 1
                seen = [j for j in range(begin - memory, end + 1) if 0 <= j < kv_len and is_real(padding_mask, b, j)]
                if not seen or not is_real(padding_mask, b, i):
                    out.append(torch.zeros(width, dtype=torch.float64))
                    continue
                passed = torch.tensor([[bptt or j >= begin] for j in seen])  # where gradients pass
                met, read = (torch.where(passed, x[seen], x[seen].detach()) for x in (keys, values))
                scores = scores_of(q[b, h, row], met, seen, scaling=scaling, score_mod=score_mod, b=b, h=h, i=i)
                out.append(scores.softmax(0) @ read)
    return torch.stack(out).reshape(batch, heads, q_len, width)


def is_constant(module: nn.Module, padding_mask: Tensor | None, k: Tensor, b: int, i: int, j: int) -> bool:
    """Whether query i meets key j in the memory, which no gradient enters."""
    start, segment = first_tokens(padding_mask, k.shape[0], k.shape[2])[b], module.options.segment_length
    return not module.options.bptt and j < start + (i - start) // segment * segment


def draw_options(random: Random, length: int) -> dict[str, Any]:
    return {
        "segment_length": random.randint(1, length + 2),
        "memory_length": random.randint(0, length + 2),
        "bptt": random.choice((False, True)),
    }
