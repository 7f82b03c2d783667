"""Step sizes of computations, bounded by a CPU's caches or an accelerator's memory.

On an accelerator every operation costs a launch of some microseconds, whatever its size, and reading a value waits for
all earlier operations. So on accelerators, tensors are computed whole, up to :data:`STEP_BYTES`, and the host reads as
few values as possible.
"""

from __future__ import annotations

from torch import Tensor

STEP_BYTES = 1 << 30
"""Maximum memory of one computation step on an accelerator, in bytes."""
TENSORS_OF_A_STEP = 4
"""Number of tensors of the largest size that a step holds at once: its input, its output and two intermediates."""


def accelerated(x: Tensor) -> bool:
    """Whether ``x`` is on a GPU or another accelerator."""
    return x.device.type != "cpu"


def numbers_at_a_time(x: Tensor, on_cpu: int, size: int = 4) -> int:
    """Maximum number of elements of a step's largest tensor on the device of ``x``.

    on_cpu: the result if this device is a CPU.
    size: bytes per element.
    """
    return STEP_BYTES // (TENSORS_OF_A_STEP * size) if accelerated(x) else on_cpu
