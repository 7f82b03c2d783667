"""Queries that each chose some blocks of keys, sorted by block: rows in which queries meet one block that all of them chose."""

from __future__ import annotations

import torch
from torch import Tensor

from .gathered import Part


def visits(chosen: Tensor, blocks: int, block_size: int, length: int, rows: int) -> list[Part]:
    """Parts in which query i meets every block of ``chosen[i]``.

    Args:
        chosen: ``(B, H, N, K)`` int64, no block twice in a row; -1 is none.
        blocks: how many blocks there are.
        block_size: block m holds the keys ``m * block_size …``, below ``length``.
        rows: queries per row.
    Returns:
        K parts, since a query stands once in a part. Part j has the j-th of each query's blocks in ascending order, so that the queries
        of a part share few blocks and few rows remain unfilled.
    """
    batch, heads, count, ranks = chosen.shape
    chosen = torch.where(chosen < 0, blocks, chosen).sort(-1).values.permute(3, 0, 1, 2)  # (K, B, H, N)
    block, query = chosen.sort(dim=-1, stable=True)
    size = torch.zeros(ranks, batch, heads, blocks + 1, dtype=torch.int64, device=chosen.device)
    size.scatter_add_(-1, chosen, torch.ones_like(chosen))
    begin = size.cumsum(-1) - size
    filled = (size + rows - 1) // rows
    filled[..., blocks] = 0
    end = filled.cumsum(-1)
    # Where a query goes: behind the rows of the blocks before its own. Queries without a block go to one slot behind the last row.
    most = count // rows + blocks if torch.compiler.is_compiling() else int(end[..., -1].max())
    place = torch.arange(count, device=chosen.device) - begin.gather(-1, block) + ((end - filled) * rows).gather(-1, block)
    place = torch.where(block < blocks, place, most * rows)
    listed = torch.full((ranks, batch, heads, most * rows + 1), -1, device=chosen.device).scatter(-1, place, query)
    row = torch.arange(most, device=chosen.device).expand(ranks, batch, heads, most).contiguous()
    met = torch.searchsorted(end, row, right=True)
    keys = (met * block_size)[..., None] + torch.arange(block_size, device=chosen.device)
    keys = torch.where((met < blocks)[..., None] & (keys < length), keys, -1)
    queries = listed[..., :-1].unflatten(-1, (most, rows))
    used = [most] * ranks if torch.compiler.is_compiling() else end[..., -1].amax((1, 2)).tolist()
    return [Part(queries[j, :, :, :n], keys[j, :, :, :n]) for j, n in enumerate(used) if n]
