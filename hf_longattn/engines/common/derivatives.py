"""Derivatives that fused kernels lack: forward-mode AD, torch.func's transforms and second derivatives.

A fused kernel has a backward pass and no other derivative. Within transforms of ``torch.func`` and forward-mode AD, plain operations run
instead, since PyTorch can differentiate and map them. A forward pass cannot know whether second derivatives will follow. Computing one
through a fused kernel therefore raises an error, which says to run the forward pass within ``sdpa_kernel(SDPBackend.MATH)``. There, plain
operations run too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.backends.cuda import cudnn_sdp_enabled, flash_sdp_enabled, mem_efficient_sdp_enabled

from ...errors import DerivativeError
from ...private_apis import warn_missing

FUSED_NODE = "ScaledDotProduct"
"""Prefix of the autograd node names of PyTorch's fused kernels."""


def transform_readers() -> tuple[Callable[[], int], Callable[[], Any]]:
    """Functions for the forward-mode AD level (-1 if none) and torch.func's transform stack (``None`` if none)."""
    read_level = functools.partial(getattr, torch.autograd.forward_ad, "_current_level")
    try:
        read_level()
        return read_level, torch._C._functorch.get_interpreter_stack
    except AttributeError:
        warn_missing("func_transforms")
        return (lambda: -1), (lambda: None)


_forward_level, _transform_stack = transform_readers()


def func_transforms() -> bool:
    """Whether a transform of torch.func, or a level of forward-mode AD, is active."""
    return _forward_level() >= 0 or _transform_stack() is not None


def values_mapped() -> bool:
    """Whether torch.vmap is active. Python then cannot read the values of tensors."""
    transforms = _transform_stack()
    return transforms is not None and any(level.key() == torch._C._functorch.TransformType.Vmap for level in transforms)


def no_fused_kernels() -> str | None:
    """Why only plain operations may run now, as a clause. ``None`` if fused kernels may run."""
    if torch.compiler.is_compiling():
        return None
    if func_transforms():
        return "torch.func and forward-mode AD need derivatives that fused kernels do not have"
    if flash_sdp_enabled() or mem_efficient_sdp_enabled() or cudnn_sdp_enabled():  # named for CUDA, but valid for every device
        return None
    return "torch.nn.attention.sdpa_kernel leaves fused kernels out"


def differentiated(*tensors: Tensor) -> bool:
    """Whether autograd records operations on these tensors, or a transform is active."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return True
    return not torch.compiler.is_compiling() and func_transforms()


def first_derivatives_only(gradients: Sequence[Any]) -> tuple[Any, ...]:
    """Make derivatives of a fused kernel's gradients raise :class:`DerivativeError`. Returns the gradients as a tuple."""
    if torch.is_grad_enabled():
        _refuse_gradients_of(gradients)
    return tuple(gradients)


def refuse_second_derivatives(out: Tensor) -> Tensor:
    """Make second derivatives of ``out`` raise :class:`DerivativeError` if a fused kernel computed it. Returns ``out``."""
    if out.requires_grad and not torch.compiler.is_compiling() and type(out.grad_fn).__name__.startswith(FUSED_NODE):
        assert out.grad_fn is not None
        out.grad_fn.register_hook(_after_backward)
    return out


def _after_backward(gradients: Iterable[Tensor | None], _: Any) -> None:
    if torch.is_grad_enabled():
        _refuse_gradients_of(gradients)


def _refuse_gradients_of(gradients: Iterable[Tensor | None]) -> None:
    for gradient in gradients:
        if isinstance(gradient, Tensor) and gradient.requires_grad:
            gradient.register_hook(_refuse)


def _refuse(_: Tensor) -> NoReturn:
    raise DerivativeError(
        "The fused attention kernel that ran has no second derivative; run the forward pass within "
        "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), or use torch.func."
    )


@contextmanager
def one_gradient_at_a_time() -> Iterator[None]:
    """Context manager or decorator for the backward pass of a fused kernel, which cannot compute batched gradients.

    Raises:
        DerivativeError: gradients are batched (``is_grads_batched``, ``vectorize=True``).
    """
    try:
        yield
    except RuntimeError as error:
        if "Batching rule not implemented" not in str(error):
            raise
        raise DerivativeError(
            "The fused attention kernel that ran cannot compute batched gradients (is_grads_batched, vectorize=True); "
            "use torch.func.jacrev or torch.func.hessian, or leave vectorize out."
        ) from error


def refusal_to_map(mechanism: str, error: RuntimeError) -> DerivativeError | None:
    """The error to raise instead of ``error`` if ``torch.vmap`` failed on a mechanism; otherwise ``None``."""
    if torch.compiler.is_compiling() or not values_mapped() or "randomness" in str(error):
        return None
    return DerivativeError(
        f"torch.vmap cannot follow mechanism {mechanism!r} with this input, because its control flow depends on tensor values; put "
        "the mapped axis into the batch axis instead of using vmap, or process one example at a time."
    )


def map_one_by_one(operator: Any) -> None:
    """Register a vmap rule for ``operator`` that calls it on one entry at a time. It must return one tensor."""

    def each(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        entries = ([x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True)] for i in range(info.batch_size))
        return torch.stack([operator(*entry) for entry in entries]), 0

    operator.register_vmap(each)
