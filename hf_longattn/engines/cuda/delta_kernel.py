"""The path ``delta-triton``: the forward pass of the gated delta rule by three Triton kernels of our own.

With the notation of ``gated_delta_rule`` in ``linear.py``, the first kernel solves every chunk's triangular system for U and W, the second
follows the state S from chunk to chunk and turns U into U - W S, and the third computes the outputs of every chunk. Nothing of a chunk's
N×64 scores, decays and systems is written. The backward pass runs the plain operations once more and differentiates them.

Products are rounded to TF32 for half precision; for fp32 each is three products of TF32, which is as exact as fp32. Whether this machine
runs the kernels is tried once for each kind of call, with a few tokens whose results are compared with the definition.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..common.dense import unit_stride
from ..common.derivatives import RunByKernel
from .linear_kernel import LAUNCH, capability_refused, difference, one_refusal, precision_for, tile_side

logger = logging.getLogger(__name__)
CHUNK = 64
"""Tokens to a triangular system."""
MOST_NUMBERS = 128
"""Most numbers of a key or a value: a chunk's tiles are in memory as a whole."""
STATE_COLUMNS = 32
"""Columns of the state that one program follows; there are as many programs as there are such blocks in all heads."""
ALWAYS_AHEAD = 64
"""Numbers of a key up to which every GPU has the shared memory to load a chunk while the one before is computed."""
Rule = Callable[..., tuple[Tensor, Tensor]]
"""Output ``(B, H, N, D)`` and state of q, k, v, g, beta and state in plain operations of their dtype."""


def kernel_gated_delta_rule(
    rule: Rule, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output ``(B, H, N, D)`` of ``gated_delta_rule`` and the state after the last token, in fp32.

    Args:
        rule: the same in plain operations.
        q, k: ``(B, H, N, F)``; v: ``(B, H, N, D)``; g, beta: ``(B, H, N)`` in fp32; state: ``(B, H, F, D)`` in fp32.
    Raises:
        NoKernel: this machine does not run the kernels, which is logged once.
    """
    kind = q.device, v.dtype, q.shape[3], v.shape[3]
    one_refusal(_refusals, kind, lambda: _tried(rule, *kind), "the gated delta rule")
    out, state = RunByKernel.apply(_run, rule, q, k, v, g, beta, state)
    return out, state


def _run(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    kernels = triton_kernels()
    (batch, heads, length, features), width = q.shape, v.shape[3]
    count, rows = -(-length // CHUNK), batch * heads
    q, k, v, g, beta = (unit_stride(x) for x in (q, k, v, g.contiguous(), beta.contiguous()))
    states = torch.empty(batch, heads, count + 1, features, width, dtype=state.dtype, device=q.device)
    states[:, :, 0] = state
    updates, seen, out = (states.new_empty(batch, heads, length, size) for size in (width, features, width))
    of_keys = tile_side(features, MOST_NUMBERS)
    tile = {"CHUNK": CHUNK, "FEATURES": of_keys, "PRECISION": precision_for(v), **LAUNCH}
    side, few = tile_side(width, MOST_NUMBERS), tile_side(width, STATE_COLUMNS)
    sizes = length, features, width, heads
    of_q, of_k, of_v = (x.stride()[:3] for x in (q, k, v))
    with torch.cuda.device_of(q):
        kernels.delta_updates[(count, rows)](k, v, g, beta, updates, seen, *sizes, *of_k, *of_v, WIDTH=side, **tile)
        steps = tile | {"num_stages": 2 if of_keys <= ALWAYS_AHEAD else 1}
        kernels.delta_states[(-(-width // few), rows)](k, g, updates, seen, states, *sizes, count, *of_k, WIDTH=few, **steps)
        kernels.delta_outputs[(count, -(-width // few), rows)](
            q, k, g, updates, states, out, *sizes, count, *of_q, *of_k, WIDTH=few, **tile
        )  # fmt: skip
    return out, states[:, :, -1]


def triton_kernels() -> Any:
    """The module with the kernels, which imports Triton."""
    from . import delta_triton

    return delta_triton


_refusals: dict[tuple[Any, ...], str | None] = {}


def _tried(rule: Rule, device: torch.device, dtype: torch.dtype, features: int, width: int) -> str | None:
    """Why results for a few tokens are not those of the definition, where they are not; what the kernels raise is raised."""
    if (why := capability_refused(device)) is not None:
        return why
    length, heads = 2 * CHUNK + 20, 2
    q, k, v, g, beta, state = (
        torch.sin(torch.arange(heads * math.prod(shape), device=device) * step).view(1, heads, *shape)
        for shape, step in (
            ((length, features), 1.7), ((length, features), 0.9), ((length, width), 2.3), ((length,), 1.3), ((length,), 0.6),
            ((features, width), 1.1),
        )
    )  # fmt: skip
    q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    q, k, v = (x.to(dtype) for x in (q, k, v))
    tensors = q, k, v, -0.1 * g.abs(), beta.abs(), state
    found, expected = _run(*tensors), rule(*(x.double() for x in tensors))
    return difference(found, expected, dtype)
