"""How many pairs a pattern has: closed forms, and sums over positions, of one head."""

from __future__ import annotations


def triangle(length: int) -> int:
    """Pairs with ``key <= query`` among ``length`` tokens."""
    return length * (length + 1) // 2


def band_pairs(length: int, left: int, right: int) -> int:
    """Pairs with ``-right <= query - key <= left``."""
    return length + _clipped_sum(left, length) + _clipped_sum(right, length)


def column_pairs(columns: range, length: int, left: int, right: int, causal: bool) -> int:
    """Pairs of all queries (when causal, those from the column on) with the given columns, without those in the band."""
    behind = sum(max(0, length - 1 - column - left) for column in columns)
    return behind if causal else behind + sum(max(0, column - right) for column in columns)


def block_sizes(length: int, size: int) -> list[int]:
    """Tokens of each block; the last one may be short."""
    return [min(size, length - first) for first in range(0, length, size)]


def _clipped_sum(side: int, length: int) -> int:
    """Keys on one side of the diagonal, summed over all queries: Σ_i min(i, side)."""
    side = min(side, length - 1)
    return side * (side + 1) // 2 + (length - 1 - side) * side
