"""CUDA path of the linear engine: the Triton kernels of the package flash-linear-attention (extra ``fla``), which is optional.

They run for fp32 features on a CUDA device outside of compiled graphs (their entry points refuse to be traced) and for up to 256
features, which is what their tiles hold. They compute Σ_{j≤i} (φ(q_i)·φ(k_j)) v_j from an initial state; the division by the sum of
weights is done here, since theirs does not know an initial state. The package is imported by name: in a file that is pushed with a model,
transformers would demand whatever an import statement names.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache

import torch
from torch import Tensor

from .linear_chunks import inverse_of

MOST_FEATURES = 256


@cache
def fla_installed() -> bool:
    """Whether flash-linear-attention and the Triton that it needs are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("fla", "triton"))


def fla_runs(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernels can do this call."""
    return (
        q.is_cuda
        and not torch.compiler.is_compiling()
        and q.dtype == torch.float32
        and q.shape[2] > 1
        and max(q.shape[-1], v.shape[-1]) <= MOST_FEATURES
        and fla_installed()
    )


def fla_linear_attention(q: Tensor, k: Tensor, v: Tensor, kv: Tensor, z: Tensor, chunk: int, normalise: bool) -> tuple[Tensor, ...]:
    """As :func:`hf_longattn.engines.linear_chunks.chunked_linear_attention`; ``chunk`` is the kernels' own affair."""
    chunk_simple_gla = importlib.import_module("fla.ops.simple_gla").chunk_simple_gla
    group = q.shape[1] // k.shape[1]
    keys, values, sums, state = (x.repeat_interleave(group, 1) if group > 1 else x for x in (k, v, z, kv))
    out, after = chunk_simple_gla(
        q=q.transpose(1, 2).contiguous(),
        k=keys.transpose(1, 2).contiguous(),
        v=values.transpose(1, 2).contiguous(),
        scale=1.0,
        initial_state=state.contiguous(),
        output_final_state=True,
    )
    out = out.transpose(1, 2)
    if normalise:
        out = out * inverse_of((q * (keys.cumsum(2) + sums[:, :, None])).sum(-1, keepdim=True))
    return out, after[:, ::group], z + k.sum(2)


def fla_runs_delta(q: Tensor, v: Tensor) -> bool:
    """Whether the kernels can run this gated delta rule: theirs takes no fp32."""
    half = q.dtype == v.dtype and q.dtype in (torch.bfloat16, torch.float16)
    fits = max(q.shape[-1], v.shape[-1]) <= MOST_FEATURES and q.shape[2] > 1
    return q.is_cuda and half and fits and not torch.compiler.is_compiling() and fla_installed()


def fla_gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`hf_longattn.engines.delta.gated_delta_rule`."""
    chunk_gated_delta_rule = importlib.import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    q, k, v, g, beta = (x.transpose(1, 2).contiguous() for x in (q, k, v, g.float(), beta.to(v.dtype)))
    out, state = chunk_gated_delta_rule(q, k, v, g, beta, scale=1.0, initial_state=state, output_final_state=True)
    return out.transpose(1, 2), state
