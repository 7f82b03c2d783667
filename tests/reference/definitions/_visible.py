"""Sets of pairs for ``always_visible``: index tensors i of queries and j of keys -> bool."""

from __future__ import annotations

from torch import Tensor


def band(width: int, i: Tensor, j: Tensor, causal: bool) -> Tensor:
    return (i - j < width) if causal else (i - j).abs() <= width // 2


def near_blocks(size: int, i: Tensor, j: Tensor, *, before: int, after: int = 0) -> Tensor:
    away = i // size - j // size
    return (away <= before) & (away >= -after)
