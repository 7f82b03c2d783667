"""Which keys the blocks of LSG attention see, listed for the gathered engine: one row of keys for every block of queries; -1 is none."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .lsg_keys import Cells


class KeyRows(NamedTuple):
    """A block sees its neighbours and the sparse keys of ``beyond`` further blocks on either side; in the causal form, none behind it."""

    cells: Cells
    beyond: int
    causal: bool

    def local(self, length: int, device: torch.device) -> Tensor:
        """The keys of the own block and its neighbours, ``(1, 1, blocks, 2b or 3b)``."""
        size = self.cells.block
        first = torch.arange(0, length, size, device=device).view(1, 1, -1, 1) - size
        keys = first + torch.arange(size * (2 if self.causal else 3), device=device)
        return torch.where((keys >= 0) & (keys < length), keys, -1)

    def chosen(self, place: Tensor) -> Tensor:
        """Sparse keys that are tokens, those of every block ``place (B or 1, H or 1, blocks, b/f)``: ``(B or 1, H or 1, blocks, ≤ 2S)``."""
        count, most = place.shape[2], self.beyond
        row = torch.arange(count, device=place.device)[:, None]
        before = (row - 1).clamp(0, most)
        behind = torch.zeros_like(row) if self.causal else (count - 2 - row).clamp(0, most)
        slot = torch.arange(max(1, min(most, count - 2), 0 if self.causal else min(2 * most, count - 3)), device=place.device)
        cell = torch.where(slot < before, row - 1 - before + slot, row + 2 - before + slot)
        keys = place[:, :, cell.clamp(0, count - 1)]
        return keys.masked_fill((slot >= before + behind)[..., None], -1).flatten(-2)

    def made(self, place: Tensor) -> list[Tensor]:
        """Sparse keys that were made, by their places as above: those before and those behind, ``(B or 1, H or 1, blocks, S)`` each."""
        count = place.shape[2]
        row = torch.arange(count, device=place.device)[:, None]
        sides = []
        for start in (-1 - self.beyond, 2)[: 1 if self.causal else 2]:
            cell = row + start + torch.arange(self.beyond, device=place.device)
            inside = (cell >= 0) & (cell < count)
            keys = place[:, :, cell.clamp(0, count - 1)].masked_fill(~inside[..., None], -1)
            sides.append(keys.flatten(-2))
        return sides

    def global_keys(self, index: Tensor, chosen: Tensor | None, length: int) -> Tensor:
        """The global keys ``index (B, g)`` that a block does not see anyway, ``(B, H or 1, blocks, g)``.

        chosen: sparse keys that are tokens, ``(B or 1, H, blocks, b/f)``, or None.
        """
        away = (index // self.cells.block)[:, None, None] - torch.arange(self.cells.blocks(length), device=index.device)[:, None]
        again = away.abs() <= 1
        if chosen is not None:
            places = torch.where(chosen < 0, length, chosen).flatten(2).expand(index.shape[0], -1, -1)
            taken = torch.zeros(*places.shape[:2], length + 1, dtype=torch.bool, device=index.device).scatter(2, places, True)
            taken = taken.gather(2, index.clamp(min=0)[:, None].expand(-1, places.shape[1], -1))[:, :, None]
            again = again | (taken & (away.abs() <= 1 + self.beyond))
        return torch.where(again, -1, index[:, None, None])
