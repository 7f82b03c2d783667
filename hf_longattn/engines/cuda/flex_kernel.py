"""flex_attention by a fused kernel, or not at all.

Without a kernel, flex_attention computes all N×N scores in memory, and raises nothing. This happens if torch.compile
is turned off, or if PyTorch has already compiled eight variants of a function, which is the limit. So every kind of
call has its own compiled function here, and no function runs uncompiled. If PyTorch cannot compile a function, forward
or backward, :class:`NoKernel` is raised, and another path runs.
"""

from __future__ import annotations

import functools
import itertools
import logging
import re
import types
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ...names import warn_missing
from ..batch import autocasts, differentiated, no_fused_kernels
from ..call import ELSEWHERE, NOT_IN_AN_EXPORTED_GRAPH, DispatchContext

MAX_KERNELS = 256
"""Maximum number of compiled functions, one per kind of call. The least recently used is dropped first."""
UNSUPPORTED_MESSAGE = re.compile(
    r"not (yet )?(supported|implemented)|unsupported|does not support|NYI|working triton installation|triton is not|"
    r"no valid (triton configs|choices)|out of resource: shared memory|OutOfResources|recompile[_ ]limit",
    re.IGNORECASE,
)
"""Messages of PyTorch and Triton for a kernel that a machine does not have."""
TOO_LARGE = re.compile("out of resource", re.IGNORECASE)
"""Messages for a kernel that needs more shared memory than the GPU has."""
MIN_FEATURES = 16
"""Minimum width of a head."""
STAGES = "num_stages"
"""The option for the number of blocks that a kernel loads at once; 1 needs the least shared memory."""
MACHINE_ERRORS = (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError)
"""Errors of the machine that are not caused by a kernel."""
logger = logging.getLogger(__name__)


def why_not(context: DispatchContext) -> str | None:
    """Why flex_attention does not run, as a clause; ``None`` if it may. Only an attempt shows whether this machine has
    the kernel."""
    if context.device != "cuda":
        return ELSEWHERE
    if context.exporting:
        return NOT_IN_AN_EXPORTED_GRAPH
    if context.features < MIN_FEATURES:
        return f"flex_attention takes heads of {MIN_FEATURES} numbers or more"
    if context.call.dropout:
        return "flex_attention has no dropout"
    return no_fused_kernels()


class NoKernel(Exception):
    """A path that does not run on this machine. The message is the reason, as a clause."""


def _attention(*tensors, **settings):  # type: ignore[no-untyped-def]
    # The body of every compiled function. A traced graph holds only the call of flex_attention.
    if not torch.compiler.is_compiling():
        raise NoKernel("torch.compile is turned off")
    return flex_attention(*tensors, **settings)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` compiled for all lengths as one graph. A graph break is an error."""
    return torch.compile(function, dynamic=True, fullgraph=True)


class Kernel:
    """flex_attention compiled for one kind of call.

    PyTorch limits compiled variants per code object, so each kernel has its own code object.
    """

    numbers = itertools.count()

    def __init__(self) -> None:
        code = _attention.__code__.replace(co_name=f"flex_attention_{next(self.numbers)}")
        self.run = compiled(types.FunctionType(code, globals()))
        self.refusal: str | None = None
        """Why this machine has no such kernel, once that is known."""
        self.has_backward = False
        """Whether the backward pass is known to run."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Any:
        # a score term may have Python floats in its closure
        with nullcontext() if settings.get("score_mod") is None else floats_as_constants():
            if not self.has_backward and differentiated(q, k, v):
                self.run_backward(q, k, v, **settings)
            return self.run(q, k, v, **settings)

    def run_backward(self, *tensors: Tensor, **settings: Any) -> None:
        """Run forward and backward once.

        PyTorch compiles the backward pass only when that pass first runs. By then it would be too late to take another
        path.
        """
        leaves = [x.detach().requires_grad_(x.requires_grad) for x in tensors]
        try:
            # identity hooks replace those of an enclosing torch.utils.checkpoint, which must not record this extra
            # pass
            with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
                out = self.run(*leaves, **settings)
                if not isinstance(out, Tensor):
                    out = out[0]
                torch.autograd.grad(out, [x for x in leaves if x.requires_grad], torch.zeros_like(out))
        except torch.OutOfMemoryError:  # without gradients, the forward pass alone may still fit
            return
        self.has_backward = True


def fused_flex(signature: Hashable, q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Any:
    """``flex_attention(q, k, v, **settings)`` by a fused kernel, forward and backward. A graph gets the plain call.

    Args:
        signature: what the closures of the mask and the score term hold, except tensors and numbers. Calls with
            another signature need another kernel.
    Raises:
        NoKernel: this machine has no kernel for this kind of call; logged once. Other errors are raised unchanged.
    """
    if torch.compiler.is_compiling():
        return _attention(q, k, v, **settings)
    kernel = _kernel((signature, _variant(q, k, v, **settings)))
    reason = kernel.refusal
    if reason is None:
        try:
            return kernel(q, k, v, **settings)
        except Exception as error:
            reason = refusal(error)
            if reason is None:
                raise
            if not isinstance(error, NoKernel):
                kernel.refusal = reason
    # A kernel that is too large for this GPU may fit if it loads one block at a time.
    options = settings.get("kernel_options", {})
    if TOO_LARGE.search(reason) and STAGES not in options:
        return fused_flex((STAGES, signature), q, k, v, **settings | {"kernel_options": options | {STAGES: 1}})
    warn_once("flex_attention", q.shape[3], q.dtype, q.device, reason)
    raise NoKernel(reason)


def _variant(
    q: Tensor, k: Tensor, v: Tensor, *, block_mask: BlockMask, scale: float | None = None, **settings: Any
) -> Hashable:
    """The properties of a call by which PyTorch compiles a function again. Sizes that are equal by chance do so too,
    but are rare and left out."""
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocasts(q)
    lists = [size == 1 for x in (block_mask.kv_indices, block_mask.q_indices) if x is not None for size in x.shape]
    layouts = []
    for x in (q, k, v):  # a compiled function has these as constants
        batch, heads, length, head_dim = x.shape
        stored = x.is_contiguous(), x.stride(1) < x.stride(2), x.requires_grad, x.is_inference()
        layouts += [x.dtype, heads, head_dim, batch == 1, length == 1, stored]
    return q.device, scale, "return_aux" in settings, modes, q.shape[2] == k.shape[2], *lists, *layouts


@functools.lru_cache(MAX_KERNELS)
def _kernel(signature: Hashable) -> Kernel:
    """The kernel for calls with this signature, made at the first call."""
    return Kernel()


def refusal(error: BaseException) -> str | None:
    """The reason why this machine has no such kernel, if ``error`` or one of its causes says so; otherwise
    ``None``."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(cause, MACHINE_ERRORS) for cause in causes):
        return None
    if isinstance(error, NoKernel):
        return str(error)
    for cause in causes:
        if isinstance(cause, NotImplementedError) or UNSUPPORTED_MESSAGE.search(str(cause)):
            return first_line(cause)
    if isinstance(error, compile_errors()):
        return first_line(error)
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters; the error's name if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@functools.cache
def warn_once(kernel: str, width: int, dtype: torch.dtype, device: torch.device, reason: str) -> None:
    """Log that a kernel is missing, once for the same arguments. ``width``: features of a head."""
    name = str(dtype).removeprefix("torch.")
    logger.warning(
        f"{kernel} has no kernel for heads of {width} in {name} on {device} ({reason}); other operations run, which "
        "are slower."
    )


def signature_of(score_mod: Any) -> Hashable:
    """The signature of a score term for :func:`fused_flex`: its code, or the name of its class."""
    code: Hashable = getattr(score_mod, "__code__", None)
    return type(score_mod).__name__ if code is None else code


def compile_errors() -> tuple[type[Exception], ...]:
    """The errors that PyTorch raises for a function that it cannot compile."""
    import torch._dynamo

    if not hasattr(torch._dynamo.exc, "TorchDynamoException"):
        warn_missing("compile_errors")
        return ()
    return (torch._dynamo.exc.TorchDynamoException,)


def floats_as_constants() -> AbstractContextManager[None]:
    """A context in which PyTorch compiles Python floats as constants. Otherwise they are CPU tensors, which no GPU
    kernel takes."""
    import torch._dynamo

    config = getattr(torch._dynamo, "config", None)
    if config is None:
        warn_missing("floats_as_constants")
        return nullcontext()
    return config.patch(specialize_float=True)
