"""How much of a machine's arithmetic a pass uses: its multiplications and additions, and those that a large product of matrices reaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from hf_longattn.naming import OPERATORS

from .case import DTYPES
from .implementations import Implementation

SIDE = 2048
"""Rows and columns of the matrices by which the peak is measured."""
REPEATS = 5
aten = torch.ops.aten


def _flash_forward(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, is_causal: bool = False, **rest: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape) // (2 if is_causal else 1)


def _flash_backward(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dropout: float,
    is_causal: bool,
    **rest: Any,
) -> int:
    return sdpa_backward_flop_count(upstream.shape, query.shape, key.shape, value.shape) // (2 if is_causal else 1)


FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _flash_forward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward,
}
"""PyTorch's table has its fused attention of GPUs only. A causal kernel leaves half of the pairs out."""


class Counter(TorchDispatchMode):
    """Counts operations; PyTorch's own counter cannot follow `torch.autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func.namespace == OPERATORS:  # PyTorch calls its body below the modes
            with self:
                return OPDEFS[func._schema.name]._init_fn(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        if (formula := FORMULAS.get(func._overloadpacket)) is not None:
            self.operations += formula(*args, **(kwargs or {}), out_val=out)
        return out


def operations(candidate: Implementation, backward: bool) -> int:
    """Floating-point operations of a pass in products of matrices, convolutions and fused attention; 0 where none is seen, as in compiled
    code."""
    with Counter() as counter:
        candidate.run(backward)
    return counter.operations


def matrix_peak(dtype: str, device: str, clock: Callable[[], float]) -> float:
    """Floating-point operations per second of a product of two square matrices, the best of :data:`REPEATS`."""
    left, right = (torch.rand(SIDE, SIDE, device=device).to(DTYPES[dtype]) for _ in range(2))
    seconds = []
    for _ in range(REPEATS + 1):
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        start = clock()
        left @ right
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return 2 * SIDE**3 / min(seconds[1:])
