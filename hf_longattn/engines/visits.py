"""The visits engine: queries see their own block of keys and some blocks that each of them chose."""

from __future__ import annotations

import torch
from torch import Tensor

from .cpu_visits import cpu_visits
from .dense import same_dtype
from .gathered import gathered_attention
from .parts import Part, rows_of
from .pattern import ScoreMod

ROW = 64
"""Queries per row that meet one block, at most."""


def visiting_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chosen: Tensor,
    block_size: int,
    *,
    causal: bool,
    key_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout_p: float = 0.0,
    score_mod: ScoreMod | None = None,
) -> Tensor:
    """Softmax attention of every query over its own block and the blocks it chose.

    Args:
        q, k, v: ``(B, H, N, D)``; block m holds the tokens ``m * block_size …``.
        chosen: ``(B, H, N, K)`` int64, blocks besides the own one, none twice in a row; -1 is none.
        causal: leave out the keys behind the query of its own block.
        key_mask: ``(B, N)`` bool, True = real token.
    Returns:
        ``(B, H, N, D)``; zeros where a query sees nothing.
    """
    length = k.shape[2]
    if q.device.type == "cpu" and dropout_p == 0.0 and score_mod is None:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in same_dtype(q, k, v))
        return cpu_visits(q, k, v, key_mask, chosen, block_size, causal, q.shape[-1] ** -0.5 if scaling is None else scaling)[0]
    rows = rows_of(length, block_size, q.device)
    parts = [Part(rows, rows, causal=causal)]
    if chosen.shape[3]:
        parts += visits(chosen, -(-length // block_size), block_size, length, min(ROW, block_size))
    return gathered_attention(q, k, v, parts, key_mask=key_mask, scaling=scaling, dropout_p=dropout_p, score_mod=score_mod)


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
