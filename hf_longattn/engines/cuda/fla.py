"""The Triton kernel of flash-linear-attention, an optional package (extra ``fla``), and the check of whether it may
run.

Compiled graphs cannot trace this kernel. The package is imported by ``importlib``: transformers requires every package
in an import statement of the files that are pushed with a model.
"""

from __future__ import annotations

import functools
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batch import no_fused_kernels
from ..call import ELSEWHERE, DispatchContext, State
from ..dense import at_least_fp32, divided, repeat_heads

MAX_FEATURES = 256
"""Maximum features per head. The tiles of the kernels hold no more."""
ALIGNED_WIDTH = 16
"""Widths are padded to a multiple of this. The kernels load 16 features at once."""


@functools.cache
def installed() -> bool:
    """Whether the package and the Triton that it needs are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("fla", "triton"))


def why_not(context: DispatchContext) -> str | None:
    """Why the kernel for linear attention does not run, as a clause. ``None`` if it may run."""
    if context.device != "cuda":
        return ELSEWHERE
    if torch.compiler.is_compiling():
        return "the package's kernels cannot be traced"
    if (why := no_fused_kernels()) is not None:
        return why
    if context.dtype not in (torch.float32, torch.bfloat16):
        return "its kernel does not take this dtype"
    if context.q_len <= 1:
        return "there is one token"
    if context.features > MAX_FEATURES:
        return f"there are more than {MAX_FEATURES} features"
    return None if installed() else "flash-linear-attention is not installed"


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: State | None,
    dtype: torch.dtype,
    normalise: bool,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, State]:
    """The output and state of :func:`hf_longattn.engines.linear_attention.linear_attention`. The kernels get tensors
    in ``dtype``.

    An extra value column of ones sums the weights. Features are padded with zeros, since in half precision the kernels
    take only even
    numbers of them. ``cu_seqlens``: offsets of the sequences in the concatenated batch rows. If given, the returned
        state is empty.
    """
    chunk_simple_gla = importlib.import_module("fla.ops.simple_gla").chunk_simple_gla
    (batch, heads), groups, features, width = q.shape[:2], k.shape[1], q.shape[3], v.shape[3]
    ones, missing = F.pad(v.new_ones(*v.shape[:3], 1), (0, -(width + 1) % ALIGNED_WIDTH)), -features % ALIGNED_WIDTH
    widened = F.pad(q, (0, missing)), F.pad(k, (0, missing)), torch.cat([v, ones], -1)
    tensors = [repeat_heads(x.to(dtype), heads).transpose(1, 2).contiguous() for x in widened]
    before = None
    if cu_seqlens is not None:
        tensors = [x.flatten(0, 1)[None] for x in tensors]
    elif state is not None:
        sums = torch.cat([state["kv"], F.pad(state["z"][..., None], (0, ones.shape[3] - 1))], -1)
        before = repeat_heads(F.pad(sums, (0, 0, 0, missing)), heads).contiguous()
    queries, keys, values = tensors
    out, after = chunk_simple_gla(
        q=queries,
        k=keys,
        v=values,
        scale=1.0,
        initial_state=before,
        output_final_state=cu_seqlens is None,
        cu_seqlens=cu_seqlens,
    )
    out = at_least_fp32(out.flatten(0, 1).unflatten(0, (batch, -1)).transpose(1, 2))
    out, weights = out[..., :width], out[..., width : width + 1]
    out = divided(out, weights) if normalise else out
    if after is None:
        return out, {}
    after = after[:, :: heads // groups, :features]
    return out, {"kv": after[..., :width], "z": after[..., width]}
