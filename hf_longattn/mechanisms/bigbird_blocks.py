"""Which random blocks BigBird's query blocks see: drawn by a counter-based hash, or the very ones that transformers draws.

A table ``(B or 1, H or 1, blocks, r)`` holds, for every head and query block, the numbers of its r random key blocks; -1 is none.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import LengthError
from ..naming import OPERATORS

OLD_PLANS = (1024, 3072, 4096)
"""Padded lengths for which transformers draws from the first 1,024 tokens, in the order of the paper's own code."""


def seeded_blocks(
    seed: int, heads: int, blocks: Tensor, rows: int, count: int, *, window: int, edge: int, causal: bool, device: torch.device
) -> Tensor:
    """``count`` distinct blocks for every head and query block, outside its window and the global blocks.

    A draw depends on the seed, the head, the query block and, when not causal, the number of blocks of its sequence: on nothing
    else, so that it is the same on every device, in every batch and after loading. Floyd's algorithm (Bentley & Floyd 1987) picks
    without replacement in ``count`` steps, so that the cost is linear.

    Args:
        blocks: ``(B or 1,)``, blocks of each sequence.
        rows: query blocks in the table.
        window: width of the window in blocks; the block and those before it when causal.
        edge: global blocks at each end; at the beginning only when causal.
    Returns:
        ``(B or 1, H, rows, count)``; where fewer than ``count`` blocks are left, all of them and -1.
    """
    row = torch.arange(rows, device=device).view(1, 1, -1)
    head = torch.arange(heads, device=device).view(1, -1, 1)
    if causal:
        low = high = row - window + 1
        left = (low - edge).clamp(min=0)
    else:
        last = blocks.view(-1, 1, 1) - edge
        low, high = (row - window // 2).clamp(min=edge), torch.minimum(row + window // 2 + 1, last)
        left = (last - edge - (high - low).clamp(min=0)).clamp(min=0)
    chosen: list[Tensor] = []
    for step in range(count):
        highest = left - count + step
        drawn = (_hash(seed, head, row, step) * (highest + 1).clamp(min=0)) >> 31
        for other in chosen:
            drawn = torch.where(other == drawn, highest, drawn)
        chosen.append(torch.where(highest >= 0, drawn, -1))
    if not chosen:
        return row.new_zeros(1, heads, rows, 0)
    index = torch.stack(torch.broadcast_tensors(*chosen), -1)
    block = index + edge
    block = torch.where(block >= low[..., None], block + (high - low)[..., None], block)
    return torch.where(index >= 0, block, -1)


def _hash(seed: int, head: Tensor, row: Tensor, step: int) -> Tensor:
    """31 uniform bits of every (seed, head, row, step), int64: rounds of MurmurHash3's finaliser, in integers only."""
    state = _mix(torch.full_like(head, seed % (1 << 32)))
    for counter in (head, row, torch.full_like(head, step)):
        state = _mix(state ^ (counter * 0x9E3779B1 + 0x85EBCA77 & 0xFFFFFFFF))
    return state >> 1


def _mix(x: Tensor) -> Tensor:
    """MurmurHash3's fmix32 of 32 bits held in int64; products wrap around, and their low 32 bits stay right."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
    return x ^ (x >> 16)


@torch.library.custom_op(f"{OPERATORS}::transformers_blocks", mutates_args=())
def transformers_blocks(blocks: Tensor, seed: int, heads: int, rows: int, count: int, size: int, max_length: int) -> Tensor:
    """The random blocks of transformers' BigBird in training mode, whose layer l draws with seed l. ``(B, H, rows, count)``.

    Args:
        blocks: ``(B,)``, blocks of each sequence.
        size: tokens in a block.
        max_length: the model's ``max_position_embeddings``, over which the plans of :data:`OLD_PLANS` are drawn.
    """
    table = torch.full((len(blocks), heads, rows, count), -1)
    for item, total in enumerate(blocks.tolist()):
        if total > 2 * count + 5:  # shorter ones are attended to fully
            table[item, :, 1 : total - 1] = torch.from_numpy(_drawn_as_transformers(seed, heads, total, count, size, max_length))
    return table.to(blocks.device)


@transformers_blocks.register_fake
def _(blocks: Tensor, seed: int, heads: int, rows: int, count: int, size: int, max_length: int) -> Tensor:
    return torch.empty((blocks.shape[0], heads, rows, count), dtype=torch.int64, device=blocks.device)


def _drawn_as_transformers(seed: int, heads: int, total: int, count: int, size: int, max_length: int) -> np.ndarray:
    """Random blocks of the query blocks 1 … total-2, ``(H, total-2, count)``."""
    random = np.random.RandomState(seed)
    drawn = np.zeros((heads, total - 2, count), dtype=np.int64)

    def draw(head: int, row: int, pool: np.ndarray, barred: frozenset[int]) -> None:
        chosen = [block for block in random.permutation(pool).tolist() if block not in barred][:count]
        if row < total - 1:
            if len(chosen) < count:
                raise LengthError(
                    f"transformers' BigBird finds only {len(chosen)} of {count} random blocks for block {row} of {total} blocks of {size} "
                    "tokens; choose random_pattern='seeded' to train at this length."
                )
            drawn[head, row - 1] = chosen

    if total * size in OLD_PLANS:
        for head in range(heads):
            for row in range(1, max_length // size - 1):
                draw(head, row, _old_pool(row, max_length // size, size), frozenset())
    else:
        end = 2 * count + 5
        for row in range(1, total):
            crossing = {end - 2} if row == 1 else {1} if row == end - 2 else set()
            barred = frozenset({0, row - 1, row, row + 1, end - 1} | crossing)
            for head in range(heads):
                draw(head, row, np.arange(end), barred)
    return drawn


def _old_pool(row: int, total: int, size: int) -> np.ndarray:
    """The blocks from which the plans of :data:`OLD_PLANS` draw for a query block."""
    end = 1024 // size - 1 if 2 * size < 1024 else total - 1
    inner = np.arange(1, total - 1)
    if row <= 2:
        return inner[row + 1 : end]
    if row >= total - 3 or row - 2 > end:
        return inner[:end]
    if row + 1 == end:
        return inner[: row - 2]
    return np.concatenate([inner[: row - 2], inner[row + 1 : end]])
