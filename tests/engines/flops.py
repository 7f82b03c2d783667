"""Counts the floating-point operations of a pass: products of matrices, convolutions and fused attention, those of our operators too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from tests.engines.mixed_devices import our_function

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

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (function := our_function(operator)) is not None:  # PyTorch calls it below the modes
            with self:
                return function(*args, **kwargs)
        out = operator(*args, **kwargs)
        if (formula := FORMULAS.get(operator.overloadpacket)) is not None:
            self.operations += formula(*args, **kwargs, out_val=out)
        return out
