"""The sparse keys of LSG attention by comparing all tokens with one another: the definition that the fast way is held against."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import softmax_over
from .lsg_keys import Cells, clusters


def sparse_definition(selection: str, cells: Cells, k: Tensor, real: Tensor, start: Tensor, seed: int) -> tuple[Tensor | None, Tensor]:
    """Which tokens are sparse keys, and how made keys weigh theirs.

    Args:
        k: ``(B, H, N, D)``; padding may stand anywhere.
        real: ``(B, N)`` bool.
        start: the first real token of every sequence, ``(B, 1, 1, 1)``.
    Returns:
        ``(B or 1, H, 1, N)`` bool, or None where keys are made; and ``(B, H, M, N)``, whose rows sum to 1, M = 0 where keys are chosen.
    """
    batch, heads, length, _ = k.shape
    place = torch.arange(length, device=k.device) - start
    cell = torch.div(place, cells.size, rounding_mode="floor")
    turn = torch.arange(heads, device=k.device).view(1, -1, 1, 1) % cells.factor
    nothing = k.new_zeros(batch, heads, 0, length)
    if cells.size % cells.factor:  # there are no sparse keys
        return torch.zeros_like(cell, dtype=torch.bool), nothing
    if selection == "strided":
        return place % cells.factor == turn, nothing
    if selection == "block_strided":
        return place % cells.size // cells.keys == turn, nothing
    if selection == "max_norm":
        norm, other = (k.double().square().sum(-1).unsqueeze(axis) for axis in (2, 3))
        rival = (cell == cell.transpose(-1, -2)) & real[:, None, :, None]
        higher = (other > norm) | ((other == norm) & (place.transpose(-1, -2) < place))
        return ((rival & higher).sum(2, keepdim=True) < cells.keys), nothing
    group = clusters(k, cells.keys, seed)[:, :, None] if selection == "lsh" else place % cells.size // cells.factor
    made = torch.arange(cells.count(length) * cells.keys, device=k.device)[:, None]
    member = (made == cell * cells.keys + group) & real[:, None, None]
    return None, softmax_over(torch.zeros_like(member, dtype=k.dtype), member.expand(batch, heads, -1, -1))
