"""Triton kernels of flash-linear-attention, an optional package (extra ``fla``), and checks of whether they may run.

Compiled graphs cannot trace these kernels. The package is imported by ``importlib``: transformers requires every package in an import
statement of the files that are pushed with a model.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.torch_version import TorchVersion

from ..common.batch import Batch
from ..common.call import ELSEWHERE, AttentionCall, DispatchContext, State
from ..common.dense import at_least_fp32, divided, repeat_heads
from ..common.derivatives import no_fused_kernels

MAX_FEATURES = 256
"""Maximum features per head. The tiles of the kernels hold no more."""
ALIGNED_WIDTH = 16
"""Widths are padded to a multiple of this. The kernels load 16 features at once."""
MIN_GROUP = 16
"""For the kernel for selected blocks: minimum query heads per key head, and minimum tokens per block."""


@functools.cache
def installed() -> bool:
    """Whether the package and the Triton that it needs are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("fla", "triton"))


def why_not(context: DispatchContext, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """Why the package's kernels do not run, as a clause. ``None`` if they may run."""
    if context.device != "cuda":
        return ELSEWHERE
    if torch.compiler.is_compiling():
        return "the package's kernels cannot be traced"
    if (why := no_fused_kernels()) is not None:
        return why
    if context.dtype not in dtypes:
        return "its kernel does not take this dtype"
    if context.q_len <= 1:
        return "there is one token"
    if context.features > MAX_FEATURES:
        return f"there are more than {MAX_FEATURES} features"
    return None if installed() else "flash-linear-attention is not installed"


def why_not_blocks(context: DispatchContext) -> str | None:
    """Why the kernel for selected blocks does not run."""
    if (why := why_not(context, (torch.bfloat16, torch.float16))) is not None:
        return why
    call, (group, size) = context.call, context.selection
    if not call.causal or call.key_mask is not None or call.score_mod is not None or call.dropout or call.sink_scores is not None:
        return "its kernel is causal, without padding, score terms, dropout and sinks"
    if group < MIN_GROUP or group.bit_count() > 1 or size < MIN_GROUP or size.bit_count() > 1:
        return f"its kernel needs {MIN_GROUP}, 32 … query heads for each selection, and {MIN_GROUP}, 32 … tokens in a block"
    return None


def why_not_linear(context: DispatchContext) -> str | None:
    """Why the kernel for linear attention does not run."""
    return why_not(context, (torch.float32, torch.bfloat16))


def why_not_delta(context: DispatchContext) -> str | None:
    """Why the kernel for the gated delta rule does not run."""
    return why_not(context, (torch.bfloat16, torch.float16)) or delta_fault()


@functools.cache
def delta_fault() -> str | None:
    """Why the delta rule's backward pass is refused on this GPU (flash-linear-attention's issue 640)."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9 or importlib.util.find_spec("tilelang") is not None:
        return None
    version = TorchVersion(importlib.metadata.version("triton"))
    return f"Triton {version} computes its gradients wrongly on Hopper GPUs: 3.7.1 does not" if "3.4" <= version < "3.7.1" else None


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, state: State | None, dtype: torch.dtype, normalise: bool, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, State]:
    """The output and state of :func:`hf_longattn.engines.linear.linear_attention`. The kernels get tensors in ``dtype``.

    An extra value column of ones sums the weights. Features are padded with zeros, since in half precision the kernels take only even
    numbers of them. ``cu_seqlens``: offsets of the sequences in the concatenated batch rows. If given, the returned state is empty.
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
        q=queries, k=keys, v=values, scale=1.0, initial_state=before, output_final_state=cu_seqlens is None, cu_seqlens=cu_seqlens
    )
    out = at_least_fp32(out.flatten(0, 1).unflatten(0, (batch, -1)).transpose(1, 2))
    out, weights = out[..., :width], out[..., width : width + 1]
    out = divided(out, weights) if normalise else out
    if after is None:
        return out, {}
    after = after[:, :: heads // groups, :features]
    return out, {"kv": after[..., :width], "z": after[..., width]}


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, documents: Batch | None = None
) -> tuple[Tensor, Tensor]:
    """The output and state of :func:`hf_longattn.engines.linear.gated_delta_rule`."""
    chunk_gated_delta_rule = importlib.import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    tensors = [x.transpose(1, 2).contiguous() for x in (q, k, v, g.float(), beta.to(v.dtype))]
    if documents is None:
        out, state = chunk_gated_delta_rule(*tensors, scale=1.0, initial_state=state, output_final_state=True)
        return out.transpose(1, 2), state
    tensors, offsets = [x.flatten(0, 1)[None] for x in tensors], documents.cu_seqlens
    out, after = chunk_gated_delta_rule(*tensors, scale=1.0, initial_state=None, output_final_state=True, cu_seqlens=offsets)
    last = (documents.labels.number[:, -1] + 1).cumsum(0) - 1  # the last document of each batch row
    return out[0].unflatten(0, (len(q), -1)).transpose(1, 2), after[last]


def block_selected(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, block_size: int, call: AttentionCall) -> Tensor:
    """The output of :func:`hf_longattn.engines.block_selected.block_selected_attention`, causal and without padding."""
    parallel_nsa = importlib.import_module("fla.ops.nsa").parallel_nsa
    own_block = (torch.arange(q.shape[2], device=q.device) // block_size)[:, None].expand(*chosen.shape[:3], 1)
    count = 1 << chosen.shape[3].bit_length()  # the next power of two, as the kernel requires
    listed = F.pad(torch.cat([own_block, chosen], -1), (0, count - 1 - chosen.shape[3]), value=-1)
    queries, keys, values, listed = (x.transpose(1, 2).contiguous() for x in (q, k, v, listed))
    scale = call.scale_for(q.shape[-1])
    blocks = {"block_indices": listed, "block_counts": count, "block_size": block_size}
    out: Tensor = parallel_nsa(q=queries, k=keys, v=values, **blocks, scale=scale)
    return out.transpose(1, 2)
