"""How much of a machine's arithmetic a pass uses: its multiplications and additions, and those that a large product of matrices reaches."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.engines.flops import Counter

from .case import DTYPES
from .implementations import Implementation

SIDE = 2048
"""Rows and columns of the matrices by which the peak is measured."""
REPEATS = 5


def operations(candidate: Implementation, backward: bool) -> int:
    """Floating-point operations of a pass in products of matrices, convolutions and fused attention; 0 where none is seen, and for compiled
    code."""
    if candidate.compiled:
        return 0
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
