"""Derivatives that fused kernels lack: forward-mode AD, torch.func's transforms and second derivatives.

A fused kernel has a backward pass and no other derivative. Within a transform of ``torch.func``, or a level of forward-mode AD, the plain
paths run instead: PyTorch differentiates and maps their operations in every way. A forward pass cannot know whether second derivatives
will follow, so they are refused when they are computed. The error says what to do: run the forward pass within
``sdpa_kernel(SDPBackend.MATH)``, as in PyTorch, where the plain paths run as well.
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
    """Functions that return the level of forward-mode AD and torch.func's stack of transforms: -1 and ``None`` if there are none.
    They are looked up once, since every call of a mechanism needs them."""
    read_level = functools.partial(getattr, torch.autograd.forward_ad, "_current_level")
    try:
        read_level()
        return read_level, torch._C._functorch.get_interpreter_stack
    except AttributeError:
        warn_missing("func_transforms")
        return (lambda: -1), (lambda: None)


def holds_vmap(transforms: Sequence[Any]) -> bool:
    """Whether torch.vmap is in the stack of torch.func's transforms."""
    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in transforms)


_forward_level, _transform_stack = transform_readers()


def func_transforms() -> bool:
    """Whether a transform of torch.func, or a level of forward-mode AD, is active."""
    return _forward_level() >= 0 or _transform_stack() is not None


def values_mapped() -> bool:
    """Whether torch.vmap is active, so that Python cannot look at the values of tensors."""
    transforms = _transform_stack()
    return transforms is not None and holds_vmap(transforms)


def no_fused_kernels() -> str | None:
    """Why only plain operations may run now, as a clause. ``None`` if fused kernels may run."""
    if torch.compiler.is_compiling():
        return None
    if func_transforms():
        return "torch.func and forward-mode AD need derivatives that fused kernels do not have"
    if flash_sdp_enabled() or mem_efficient_sdp_enabled() or cudnn_sdp_enabled():  # these settings apply to every device
        return None
    return "torch.nn.attention.sdpa_kernel leaves fused kernels out"


def differentiated(*tensors: Tensor) -> bool:
    """Whether results of these tensors may be differentiated: autograd records, or a transform is active."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return True
    return not torch.compiler.is_compiling() and func_transforms()


def first_derivatives_only(gradients: Sequence[Any]) -> tuple[Any, ...]:
    """The gradients of a fused kernel's backward pass. Differentiating them raises :class:`DerivativeError`."""
    if torch.is_grad_enabled():
        _refuse_gradients_of(gradients)
    return tuple(gradients)


def refuse_second_derivatives(out: Tensor) -> Tensor:
    """The output of scaled_dot_product_attention. If a fused kernel computed it, second derivatives raise :class:`DerivativeError`."""
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
        "A second derivative was asked for, but the fused attention kernel that ran has none; run the forward pass within "
        "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), or use torch.func."
    )


@contextmanager
def one_gradient_at_a_time() -> Iterator[None]:
    """Context manager or decorator of a fused kernel's backward pass. It refuses many gradients at once, by autograd's own vmap.

    Raises:
        DerivativeError: the gradients are mapped (``is_grads_batched``, ``vectorize=True``).
    """
    try:
        yield
    except RuntimeError as error:
        if "Batching rule not implemented" not in str(error):
            raise
        raise DerivativeError(
            "Many gradients were asked for at once (is_grads_batched, vectorize=True), but the fused attention kernel that ran takes one "
            "at a time; use torch.func.jacrev or torch.func.hessian, or leave vectorize out."
        ) from error


def refusal_to_map(mechanism: str, error: RuntimeError) -> DerivativeError | None:
    """A clear error to replace ``error`` if ``torch.vmap`` could not follow a mechanism; otherwise ``None``."""
    if not values_mapped() or "randomness" in str(error):
        return None
    return DerivativeError(
        f"torch.vmap cannot follow mechanism {mechanism!r} with this input, since what it computes depends on the values; put the "
        "mapped axis into the batch axis in place of vmap, or differentiate one example after the other."
    )


def map_one_by_one(operator: Any) -> None:
    """Let ``torch.vmap`` run a custom operator on one entry after the other. The operator returns one tensor."""

    def each(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        entries = ([x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True)] for i in range(info.batch_size))
        return torch.stack([operator(*entry) for entry in entries]), 0

    operator.register_vmap(each)
