"""The pyramid of pooled keys of :mod:`.hierarchical`: which level a pair uses, the pooled tokens, and the parts that visit them.

Level 0 are the tokens. Level l pools 2^l neighbours and has blocks of B_l = b·2^l tokens. Below the last level L, a query's level l reaches
its own block and the two next to it; the last level reaches everything. A key belongs to the lowest level that reaches it.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines.pattern import GatherTile, rows_of
from .layout import without_gaps

ROWS = 128
"""Queries that share a row of pooled keys, at most: on level l, those of a block of level l-1 have the same."""


@dataclasses.dataclass(frozen=True)
class Pyramid:
    """The levels of a sequence of ``length`` tokens, the last of which is ``top``."""

    length: int
    block: int
    top: int

    @classmethod
    def over(cls, length: int, block: int, levels: int | None) -> Pyramid:
        """As many levels as it takes until two blocks hold the sequence, at most ``levels``."""
        top = 0
        while block << top < -(-length // 2):
            top += 1
        return cls(length, block, top if levels is None else min(top, levels - 1))

    def size(self, level: int) -> int:
        """Pooled tokens of a level."""
        return -(-self.length >> level) if level else self.length

    def offset(self, level: int) -> int:
        """Where a level begins on the keys' axis, on which the levels stand one behind the other."""
        return sum(self.size(below) for below in range(level))

    def level_of(self, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """The level that a pair uses, for broadcastable positions."""
        level = torch.zeros((), dtype=torch.long, device=q_idx.device)
        for below in range(self.top):
            size = self.block << below
            level = level + ((q_idx.div(size, rounding_mode="floor") - kv_idx // size).abs() > 1)
        return level

    def centre(self, level: Tensor | int, pool: Tensor) -> Tensor:
        """The position by which a score term knows a pooled token: its middle, or itself on level 0."""
        width = 2 ** torch.as_tensor(level, device=pool.device)
        return (pool * width + width // 2).clamp(max=self.length - 1)

    def centres(self, device: torch.device) -> Tensor:
        """:meth:`centre` of every entry of the keys' axis."""
        return torch.cat([self.centre(level, torch.arange(self.size(level), device=device)) for level in range(self.top + 1)])

    def counts(self, real: Tensor) -> Tensor:
        """Real tokens in every entry of the keys' axis, ``(B, all levels)`` float32, of ``real (B, N)`` bool."""
        levels = [real.float()]
        for _ in range(self.top):
            levels.append(_pairs(levels[-1][..., None])[..., 0].sum(-1))
        return torch.cat(levels, -1)

    def pooled(self, x: Tensor, real: Tensor | None, by: str) -> list[Tensor]:
        """The levels above 0 of ``x (B, H, N, D)``: means, or element-wise maxima, of the real tokens; zeros where there is none."""
        work = x.to(torch.promote_types(x.dtype, torch.float32))
        seen = torch.ones(1, self.length, dtype=torch.bool, device=x.device) if real is None else real
        counts = self.counts(seen)
        whole = None if real is None else real[:, None, :, None]
        largest = by == "max"
        levels = work if whole is None else work.masked_fill(~whole, float("-inf") if largest else 0.0)
        out = []
        for level in range(1, self.top + 1):
            halves = _pairs(levels, float("-inf") if largest else 0.0)
            levels = halves.amax(-2) if largest else halves.sum(-2)
            count = counts[:, None, self.offset(level) : self.offset(level) + self.size(level), None].to(levels.dtype)
            out.append((torch.where(count > 0, levels, 0.0) if largest else levels / count.clamp(min=1)).to(x.dtype))
        return out

    def parts(self, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        """The pairs of every level: tokens with the tokens of three blocks, and with pooled tokens farther off."""
        queries = rows_of(self.length, self.block, device)
        first = (torch.arange(queries.shape[2], device=device)[:, None] - 1) * self.block
        near = first + torch.arange((2 if causal else 3) * self.block, device=device)
        near = torch.where((near >= 0) & (near < self.length), near, -1)
        parts = [GatherTile(queries, near[None, None], causal=causal)]
        for levels in ([1], list(range(2, self.top + 1))):
            levels = [level for level in levels if level <= self.top]
            if levels:
                size = self.block
                while size * 2 <= ROWS and size < self.block << (levels[0] - 1):
                    size *= 2
                rows = rows_of(self.length, size, device)
                starts = torch.arange(rows.shape[2], device=device) * size
                keys = torch.cat([self._far(level, starts, causal) for level in levels], -1)
                parts.append(GatherTile(rows, without_gaps(keys)[None, None]))
        return tuple(parts)

    def _far(self, level: int, starts: Tensor, causal: bool) -> Tensor:
        """What the queries in the blocks of ``starts (R,)`` visit on a level above 0, ``(R, T)`` on the keys' axis; -1 is nothing."""
        half, size = self.block // 2, self.size(level)
        own = (starts // (self.block << (level - 1)))[:, None]
        low, high = (own - 1) * half, (own + 2) * half  # of what the level below reaches, in this level's pooled tokens
        if level == self.top:
            pools = torch.arange(size, device=starts.device).expand(len(starts), -1)
            seen = (pools < low) | ((pools >= high) & (not causal))
        else:
            left = (own // 2 - 1) * self.block
            slots = torch.arange(2 * half if causal else 3 * half, device=starts.device)
            pools = torch.where(slots < low - left, left + slots, high + slots - (low - left))
            seen = (pools >= 0) & (pools < size) & ((pools < low) | (not causal))
        return torch.where(seen, pools + self.offset(level), -1)

    def pairs(self, causal: bool) -> int:
        """Query–key products."""
        total = 0
        for level in range(self.top + 1):
            width = self.block << max(level - 1, 0)
            half = self.block // 2
            for own in range(-(-self.length // width)):
                queries = min(width, self.length - own * width)
                if level == 0:
                    first, last = max(0, (own - 1) * width), min(self.length, (own + 2) * width)
                    before = own * width - first
                    total += queries * before + queries * (queries + 1) // 2 if causal else queries * (last - first)
                    continue
                left = 0 if level == self.top else max(0, (own // 2 - 1) * self.block)
                right = self.size(level) if level == self.top else min(self.size(level), (own // 2 + 2) * self.block)
                total += queries * (max(0, (own - 1) * half - left) + (0 if causal else max(0, right - (own + 2) * half)))
        return total


def _pairs(x: Tensor, filling: float = 0.0) -> Tensor:
    """Neighbours on the token axis, ``(…, N, D) -> (…, ceil(N / 2), 2, D)``."""
    return F.pad(x, (0, 0, 0, x.shape[-2] % 2), value=filling).unflatten(-2, (-1, 2))
