"""How much is computed at a time: what stays in a CPU's caches, or what an accelerator has memory for.

On an accelerator every operation costs a launch, some microseconds whatever its size, and a look at a value waits for all operations before
it. So tensors are computed whole there, up to :data:`STEP_BYTES`, and nothing is looked at that can be computed.
"""

from __future__ import annotations

from torch import Tensor

STEP_BYTES = 1 << 30
"""Memory that one step of a computation may take on an accelerator."""
TENSORS_OF_A_STEP = 4
"""Tensors as large as the largest that a step has at the same time: its input, what is computed from it, and two in between."""


def accelerated(x: Tensor) -> bool:
    """Whether ``x`` is on a GPU or another accelerator."""
    return x.device.type != "cpu"


def numbers_at_a_time(x: Tensor, on_cpu: int, size: int = 4) -> int:
    """Most numbers of ``size`` bytes in the largest tensor of a step for the device of ``x``: ``on_cpu`` on a CPU."""
    return STEP_BYTES // (TENSORS_OF_A_STEP * size) if accelerated(x) else on_cpu
