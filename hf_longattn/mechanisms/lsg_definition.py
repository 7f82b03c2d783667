"""The sparse keys of LSG attention by comparing all tokens with one another: the definition that the fast way is held against."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import softmax_over
from .lsg_keys import Cells, directions


def sparse_definition(
    selection: str, cells: Cells, k: Tensor, real: Tensor, start: Tensor, seed: int, pre_rounds: int
) -> tuple[Tensor | None, Tensor]:
    """Which tokens are sparse keys, and how made keys weigh theirs.

    Args:
        k: ``(B, H, N, D)``; padding may stand anywhere.
        real: ``(B, N)`` bool: the tokens that may be chosen.
        start: where the first block of every sequence begins, ``(B, 1, 1, 1)``; not after its first real token.
    Returns:
        ``(B or 1, H, 1, N)`` bool, or None where keys are made; and ``(B, H, M, N)``, whose rows sum to 1, M = 0 where keys are chosen.
    """
    batch, heads, length, _ = k.shape
    place = torch.arange(length, device=k.device) - start
    cell = torch.div(place, cells.size, rounding_mode="floor")
    turn = torch.arange(heads, device=k.device).view(1, -1, 1, 1) % cells.factor
    nothing = k.new_zeros(batch, heads, 0, length)
    if cells.block % cells.factor:  # there are no sparse keys
        return torch.zeros_like(cell, dtype=torch.bool), nothing
    if selection == "strided":
        return place % cells.factor == turn, nothing
    if selection == "block_strided":
        return place % cells.block // (cells.block // cells.factor) == turn, nothing
    if selection == "max_norm":
        norm, other = (k.double().square().sum(-1).unsqueeze(axis) for axis in (2, 3))
        rival = (cell == cell.transpose(-1, -2)) & real[:, None, :, None]
        higher = (other > norm) | ((other == norm) & (place.transpose(-1, -2) < place))
        return ((rival & higher).sum(2, keepdim=True) < cells.keys), nothing
    group = place % cells.size // cells.factor
    if selection == "lsh" and cells.factor > 1:
        group = _hashed(cells, k, real, cell == cell.transpose(-1, -2), seed, pre_rounds)[:, :, None]
    made = torch.arange(cells.count(length - int(start.min())) * cells.keys, device=k.device)[:, None]
    member = (made == cell * cells.keys + group) & real[:, None, None]
    return None, softmax_over(torch.zeros_like(member, dtype=k.dtype), member.expand(batch, heads, -1, -1))


def _hashed(cells: Cells, k: Tensor, real: Tensor, together: Tensor, seed: int, pre_rounds: int) -> Tensor:
    """The cluster of every token, ``(B, H, N)``; ``together (B, 1, N, N)`` says which tokens share a cell."""
    if cells.keys == 1:
        return torch.zeros(k.shape[:3], dtype=torch.long, device=k.device)
    rounds = [cells.size] * pre_rounds + [cells.keys]
    keys = (k * real[:, None, :, None]).double()
    sums = keys
    for turned in directions(seed, k.shape[1], k.shape[3], rounds, k.device):
        cluster = torch.cat([sums @ turned, -sums @ turned], -1).argmax(-1)
        sums = (together & (cluster[..., None] == cluster[..., None, :])).double() @ keys
    return cluster
