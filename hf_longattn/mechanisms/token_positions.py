"""Positions of tokens, counted from each sequence's first real one, over one call or over several."""

from __future__ import annotations

import torch
from torch import Tensor


def positions_of(mask: Tensor | None, batch: int, length: int, device: torch.device, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Positions ``(B, N)`` of the next tokens, and ``(B,)`` how many are counted after them.

    Args:
        mask: ``(B, N)`` bool, True = real. Padding before the first real token is at position 0 and is not counted.
        seen: how many tokens ``(B,)`` were counted before, 0 where no real one has come yet.
    """
    steps = torch.arange(length, device=device).expand(batch, length)
    seen = torch.zeros(batch, dtype=torch.long, device=device) if seen is None else seen
    if mask is None:
        return steps + seen[:, None], seen + length
    empty = torch.where(mask.any(1), mask.int().argmax(1), length)
    before = torch.where(seen > 0, 0, empty)
    return (steps - before[:, None] + seen[:, None]).clamp(min=0), seen + length - before
