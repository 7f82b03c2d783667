"""Reasons against the Triton kernels of flash-linear-attention, an optional package (extra ``fla``)."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util

import torch
from torch.torch_version import TorchVersion

from ..common.context import ELSEWHERE, DispatchContext
from ..common.derivatives import no_fused_kernels

MAX_FEATURES = 256
"""Maximum features per head. The tiles of the kernels hold no more."""
MIN_GROUP = 16
"""Minimum query heads per selection and tokens per block, for the kernel of selected blocks."""


@functools.cache
def installed() -> bool:
    """Whether the package and the Triton that it needs are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("fla", "triton"))


def why_not(context: DispatchContext, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """Why no kernel of the package runs, as a clause. ``None`` if they may run."""
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
    if not call.causal or call.key_mask is not None or call.score_mod is not None or call.dropout:
        return "its kernel is causal, without padding, score terms and dropout"
    if group < MIN_GROUP or group.bit_count() > 1 or size < MIN_GROUP or size.bit_count() > 1:
        return f"its kernel takes groups of {MIN_GROUP}, 32 … query heads to a selection, and such blocks"
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
