"""The dtype that a result is stored in."""

from __future__ import annotations

import torch

from ...errors import CheckpointError, nearest

__all__ = ["parse_dtype"]

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """ "bf16", "float32" … or a torch dtype; None keeps each tensor's own.

    Raises:
        CheckpointError: not one of the floating dtypes a checkpoint is stored in.
    """
    if dtype is None:
        return None
    found = dtype if isinstance(dtype, torch.dtype) else DTYPES.get(dtype.removeprefix("torch.").lower())
    if found not in DTYPES.values():
        raise CheckpointError(f"Unknown dtype {str(dtype)!r}; expected one of {', '.join(DTYPES)}.{nearest(str(dtype), DTYPES)}")
    return found
