"""PyTorch's fused attention kernel for the CPU, and what the engines that call it share: masks, and how results are stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import BackendError

MASKED = -1e30
"""Additive mask: finite, so that rows which see nothing stay finite; exp(MASKED - anything real) is exactly 0."""


def _operator(name: str) -> Any:
    """An operator of PyTorch that is no part of its public interface."""
    try:
        return getattr(torch.ops.aten, name)
    except AttributeError:
        sentence = (
            f"This version of torch has no operator aten::{name}, by which attention runs on the CPU; "
            "install one that hf_longattn names in its requirements."
        )

        def missing(*_: Any, **__: Any) -> Any:
            raise BackendError(sentence)

        return missing


flash = _operator("_scaled_dot_product_flash_attention_for_cpu")
flash_backward = _operator("_scaled_dot_product_flash_attention_for_cpu_backward")


def mask_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def stable_order(numbers: Tensor, most: int) -> Tensor:
    """Indices that sort ``numbers (…, N)`` from -1 to ``most``, of equal ones the first first; in 16 bits, NumPy has a radix sort."""
    if most >= 1 << 15:
        return numbers.argsort(dim=-1, stable=True)
    return torch.from_numpy(numbers.to(torch.int16).numpy().argsort(-1, kind="stable"))


def token_major(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Empty tensors of the same shapes ``(B, H, N, D)``, stored as ``(B, N, H, D)``."""
    return tuple(x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3], dtype=dtype).transpose(1, 2) for x in tensors)


def empty_results(q: Tensor) -> tuple[Tensor, Tensor]:
    """An output ``(B, H, N, D)`` and a log-sum-exp ``(B, H, N)`` for ``q (B, H, N, D)``, stored token-major and not yet written."""
    lse = q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=mask_dtype(q)).transpose(1, 2)
    return token_major(q.dtype, q)[0], lse
