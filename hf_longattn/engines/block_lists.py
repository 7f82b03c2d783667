"""Lists of blocks as flex_attention reads them: for every row of blocks how many it visits and which, never a square of blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

Lists = tuple[Tensor, Tensor]
"""Counts ``(B, H, rows)`` and indices ``(B, H, rows, width)``, int32; what counts stands first."""


def packed(chosen: Tensor, indices: Tensor) -> Lists:
    """The ``indices (…, rows, width)`` that are ``chosen (B, H, rows, width)``, in their order."""
    order = (~chosen).int().argsort(dim=-1, stable=True)
    return chosen.sum(-1, dtype=torch.int32), indices.expand(chosen.shape).gather(-1, order).to(torch.int32).contiguous()


def transposed(lists: Lists, columns: int) -> Lists:
    """Which rows visit each of ``columns`` blocks, from which blocks each row visits; as often as it does."""
    counts, indices = lists
    batch, heads, rows, width = indices.shape
    places = torch.arange(rows * width, device=indices.device)
    used = places[:width] < counts[..., None]
    column = torch.where(used, indices, columns).flatten(2).long()
    order = column.argsort(dim=-1, stable=True)
    column = column.gather(-1, order)
    totals = column.new_zeros(batch, heads, columns + 1).scatter_add_(2, column, torch.ones_like(column))
    longest = max(1, int(totals[..., :columns].max()))
    slot = places - (totals.cumsum(-1) - totals).gather(-1, column)
    target = torch.where(column < columns, column * longest + slot, columns * longest)
    found = column.new_zeros(batch, heads, columns * longest + 1).scatter_(2, target, order // width)
    found = found[..., :-1].unflatten(-1, (columns, longest))
    return totals[..., :columns].to(torch.int32), found.to(torch.int32).contiguous()


def block_mask(
    lengths: tuple[int, int], size: int, mask_mod: Any, *, by_query: tuple[Lists, Lists | None], by_key: tuple[Lists, Lists | None]
) -> BlockMask:
    """The mask of (partial, full) blocks listed by rows of queries and by rows of keys; ``mask_mod`` is evaluated in partial ones."""
    if torch.compiler.is_compiling() and by_query[0][1].device.type == "cpu":  # whose compiled kernel wants room for every block in a row
        rows, columns = (-(-length // size) for length in lengths)
        by_query = _widened(by_query[0], columns), by_query[1] and _widened(by_query[1], columns)
        by_key = _widened(by_key[0], rows), by_key[1] and _widened(by_key[1], rows)
    (partial, full), (partial_by_key, full_by_key) = by_query, by_key
    return BlockMask(
        seq_lengths=lengths,
        kv_num_blocks=partial[0],
        kv_indices=partial[1],
        full_kv_num_blocks=None if full is None else full[0],
        full_kv_indices=None if full is None else full[1],
        q_num_blocks=partial_by_key[0],
        q_indices=partial_by_key[1],
        full_q_num_blocks=None if full_by_key is None else full_by_key[0],
        full_q_indices=None if full_by_key is None else full_by_key[1],
        BLOCK_SIZE=(size, size),
        mask_mod=mask_mod,
    )


def _widened(lists: Lists, blocks: int) -> Lists:
    """``lists`` whose rows have room for ``blocks``."""
    counts, indices = lists
    return counts, torch.nn.functional.pad(indices, (0, blocks - indices.shape[-1])) if indices.shape[-1] < blocks else indices


def mask_bytes(mask: BlockMask) -> int:
    """Memory of a mask's lists."""
    return sum(x.untyped_storage().nbytes() for x in vars(mask).values() if isinstance(x, Tensor))
