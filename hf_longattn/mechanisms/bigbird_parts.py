"""BigBird's pattern in blocks, and how the gathered engine visits it."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from ..engines.global_rows import global_index
from ..engines.pattern import GatherTile
from .layout import joined


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The pattern of some sequences of blocks.

    count: ``(B or 1,)``, blocks of each sequence.
    rows: blocks of the longest.
    size: tokens in a block.
    window: blocks in the window.
    edge: global blocks at each end; at the beginning only when causal.
    full: both ways, sequences of up to so many blocks are attended to fully.
    random: ``(B or 1, H or 1, rows, r)``, the random key blocks of every query block; -1 is none.
    again: how often the first block, a global one, is counted again by all queries that do not see everything.
    """

    count: Tensor
    rows: int
    size: int
    window: int
    edge: int
    full: int
    random: Tensor
    causal: bool
    again: int = 0

    def times(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """How often queries of block ``i`` count keys of block ``j``, for broadcastable index tensors; causality is left out."""
        total = self.count[b.clamp(max=self.count.shape[0] - 1)]
        if self.causal:
            seen, ends = ((i - j < self.window) & (j <= i)) | (j < self.edge), i < 0
        else:
            seen = ((i - j).abs() <= self.window // 2) | self._global(j, total)
            ends = self._global(i, total) | (total <= self.full)
        counted = seen.int() + self.again * (j == 0).int()
        row = i.clamp(0, self.rows - 1)
        for drawn in (self.random[..., number] for number in range(self.random.shape[-1])):  # a saved graph cannot unbind none
            counted = counted + (drawn[b.clamp(max=drawn.shape[0] - 1), h.clamp(max=drawn.shape[1] - 1), row] == j).int()
        return torch.where(ends, 1, counted)

    def _global(self, block: Tensor, total: Tensor) -> Tensor:
        return (block < self.edge) | (block >= total - self.edge)


def seen_blocks(blocks: Blocks) -> Tensor:
    """The key blocks of every query block that is not global, ``(B or 1, H or 1, rows, K)``, ascending but for the random ones; -1 is
    none. Rows of global blocks mean nothing unless causal."""
    row = torch.arange(blocks.rows, device=blocks.count.device).view(1, 1, -1, 1)
    total = blocks.count.view(-1, 1, 1, 1)
    around = torch.arange(blocks.window, device=row.device)
    first = torch.arange(blocks.edge, device=row.device).expand(1, 1, blocks.rows, -1)
    if blocks.causal:
        near = row - blocks.window + 1 + around
        lists = [torch.where(first <= row, first, -1), torch.where(near >= blocks.edge, near, -1)]
    else:
        near = row - blocks.window // 2 + around
        last = total - blocks.edge + torch.arange(blocks.edge, device=row.device)
        inner = (near >= blocks.edge) & (near < total - blocks.edge)
        lists = [first, torch.where(inner, near, -1), last.expand(-1, -1, blocks.rows, -1)]
    return joined(*lists, blocks.random)


def block_parts(
    blocks: Blocks, length: int, tokens: Tensor | None, *, even: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[GatherTile, ...]:
    """The parts that visit ``blocks`` in an input of ``length`` tokens whose sequences begin at position 0.

    Args:
        tokens: ``(B, length)`` bool, tokens that are global besides the blocks.
        even: every sequence is of ``blocks.rows`` blocks, more than are attended to fully.
        dtype: of what is added to the scores.
    """
    if tokens is not None and not bool(tokens.any()):
        tokens = None
    edge, rows, size, causal = blocks.edge, blocks.rows, blocks.size, blocks.causal
    total = blocks.count.view(-1, 1, 1, 1)
    row = torch.arange(rows, device=total.device).view(1, 1, -1, 1)
    long = total > (0 if causal else blocks.full)
    inner = slice(None) if causal else slice(edge, rows - edge if even else rows)
    active = long & ((row >= 0) if causal else (row < total - edge))
    queries = positions(torch.where(active, row, -1)[:, :, inner], size, length)
    keys = positions(seen_blocks(blocks)[:, :, inner], size, length)
    parts: list[GatherTile] = []
    if tokens is not None:
        tokens = tokens & long.view(-1, 1)
        index, real = global_index(tokens)
        index = torch.where(real, index, -1)[:, None, None]
        queries, keys = without(queries, tokens), joined(without(keys, tokens), index.expand(-1, -1, keys.shape[2], -1))
    parts.append(GatherTile(queries, keys, causal=causal, bias=counted_again(blocks, keys, dtype)))
    everywhere = torch.arange(length, device=total.device)
    ends = global_rows(blocks, length, tokens, long)
    if ends is not None:
        parts.append(GatherTile(ends, everywhere.expand(1, 1, ends.shape[2], -1), causal=causal))
    if not (even or causal) and (torch.compiler.is_compiling() or not bool(long.all())):
        few = min(blocks.full, rows)
        short = torch.where(~long & (row[:, :, :few] < total), row[:, :, :few], -1)
        parts.append(GatherTile(positions(short, size, length), everywhere[: few * size].expand(1, 1, few, -1)))
    return tuple(parts)


def counted_again(blocks: Blocks, keys: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The bias by which one listing of the first block, which stands first among the ``keys``, counts as all of its listings."""
    if not blocks.again:
        return None
    slot = torch.arange(keys.shape[-1], device=keys.device).view(1, 1, 1, 1, -1)
    return (slot < blocks.size).to(dtype) * math.log(1 + blocks.again)


def global_rows(blocks: Blocks, length: int, tokens: Tensor | None, long: Tensor) -> Tensor | None:
    """The queries that see everything, in rows of ``blocks.size``: ``(B or 1, 1, R, size)``."""
    total, edge = blocks.count.view(-1, 1, 1, 1), blocks.edge
    ends = torch.arange(edge, device=total.device)
    if tokens is None:
        if blocks.causal or edge == 0:
            return None
        block = torch.cat([ends.expand(total.shape[0], -1), total.view(-1, 1) - edge + ends], -1)[:, None, :, None]
        return positions(torch.where(long, block, -1), blocks.size, length)
    everything = tokens
    if not blocks.causal:
        block = torch.arange(length, device=total.device) // blocks.size
        everything = tokens | (((block < edge) | (block >= total.view(-1, 1) - edge)) & (block < total.view(-1, 1)) & long.view(-1, 1))
    index, real = global_index(everything)
    index = torch.nn.functional.pad(torch.where(real, index, -1), (0, -index.shape[1] % blocks.size), value=-1)
    return index.view(len(index), 1, -1, blocks.size)


def positions(block: Tensor, size: int, length: int) -> Tensor:
    """Tokens of blocks ``(…, K)`` as ``(…, K·size)``; -1 where there is no block or no token."""
    place = block[..., None] * size + torch.arange(size, device=block.device)
    return torch.where((block[..., None] >= 0) & (place < length), place, -1).flatten(-2)


def without(places: Tensor, tokens: Tensor) -> Tensor:
    """``places (B or 1, H or 1, R, T)`` with -1 in place of the ``tokens (B, N)``."""
    item = torch.arange(len(tokens), device=tokens.device).view(-1, 1, 1, 1)
    return torch.where(tokens[item, places.clamp(min=0)], -1, places)
