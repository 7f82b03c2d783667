"""PyTorch's fused attention kernel for the CPU, and the conventions of its callers: additive masks and token-major results."""

from __future__ import annotations

import torch
from torch import Tensor

from ..private_apis import aten

MASKED = -1e30
"""Additive mask. Finite, so that rows without a visible key stay finite; exp(MASKED - any score) is exactly 0."""


flash = aten("cpu_flash")
flash_backward = aten("cpu_flash", 1)


def mask_dtype(q: Tensor) -> torch.dtype:
    """The dtype that the kernel expects of masks, and in which it returns log-sum-exps."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def stable_order(numbers: Tensor, most: int) -> Tensor:
    """Stable argsort of integers ``(…, N)`` from -1 to ``most``; NumPy has a radix sort for 16 bits."""
    if most >= 1 << 15:
        return numbers.argsort(dim=-1, stable=True)
    return torch.from_numpy(numbers.to(torch.int16).numpy().argsort(-1, kind="stable"))


def token_major(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Uninitialised tensors of the same shapes ``(B, H, N, D)``, stored as ``(B, N, H, D)``."""
    return tuple(x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3], dtype=dtype).transpose(1, 2) for x in tensors)


def empty_results(q: Tensor) -> tuple[Tensor, Tensor]:
    """Uninitialised output ``(B, H, N, D)`` and log-sum-exp ``(B, H, N)`` for ``q (B, H, N, D)``, stored token-major."""
    lse = q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=mask_dtype(q)).transpose(1, 2)
    return token_major(q.dtype, q)[0], lse
