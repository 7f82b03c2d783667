"""The gathered engine: softmax attention between rows of queries and keys, listed by position.

A block pattern, a set of columns or the buckets of a hash can be a :class:`~hf_longattn.engines.call.GatherTile`: R
rows, each with some queries and some keys. A query may appear in several tiles. It attends to the union of their keys
under *one* softmax, because the outputs of tiles are merged by log-sum-exp. The cost is proportional to the number of
listed pairs.

If each query selects some blocks of keys, two paths are faster. On the CPU, blocks are slices of the keys
(``cpu/block_selected.py``). On CUDA, one call of flex_attention lets each block of queries visit the key blocks that
any of its queries selected. Elsewhere the selection becomes tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .batch import in_graph, nothing_seen
from .blockwise import plain_gathered
from .byte_cache import BYTE_CACHE
from .call import AttentionCall, DispatchContext, GatherTile, rows_of
from .cpu.softmax import attend_parts
from .cpu.tiles import Bounds
from .cuda.flex import flex_block_selected
from .dense import repeat_heads, same_dtype
from .dispatch import choose, try_path

MAX_ROW_QUERIES = 64
"""Maximum queries per row of a tile for selected blocks. All queries of a row selected the same block."""


def gathered_attention(q: Tensor, k: Tensor, v: Tensor, tiles: Sequence[GatherTile], call: AttentionCall) -> Tensor:
    """Softmax attention over the union of the tiles' pairs.

    Args:
        q: ``(B, H, Nq, D)``; query i and key i are at the same position.
        k, v: ``(B, H_kv, Nk, D)``; Nk may exceed Nq, for instance if summaries follow the tokens' keys.
        tiles: the pairs; a tile may list none.
        call: gives padding mask, scale, dropout and score term. Causality comes from the tiles.
    Returns:
        ``(B, H, Nq, D)`` in the dtype of q. Queries without a visible key give zeros, with zero gradients.
    """
    q, k, v = same_dtype(q, k, v)
    tiles = [tile for tile in tiles if tile.keys.shape[3] and 0 not in tile.queries.shape[2:]]
    if not tiles:
        return nothing_seen(q, k, v)
    learned = any(tile.bias is not None and tile.bias.requires_grad for tile in tiles)
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    if choose("tiles", q, k, call, learned_bias=learned) == "cpu-gathered":
        fixed = [call.key_mask, *(x for tile in tiles for x in (tile.queries, tile.keys, tile.bias))]
        numbers = [number for tile in tiles for number in Bounds.of(tile)]
        return attend_parts(
            "tiles", q, k, v, call.scale_for(q.shape[-1]), (), fixed, numbers, call.dropout, call.sink_scores
        )
    return plain_gathered(q, k, v, tiles, call.written_out())


def block_selected_attention(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, block_size: int, call: AttentionCall
) -> Tensor:
    """Softmax attention of every query over its own block and its selected blocks.

    Args:
        q, k, v: ``(B, H, N, D)``; block m holds the tokens ``m * block_size …``.
        chosen: ``(B, H, N, K)`` int64, selected blocks other than the query's own, without duplicates; -1 is an empty
            slot.
        call: if causal, a query does not see later keys in its block.
    Returns:
        ``(B, H, N, D)``; zeros where a query sees no key.
    """
    length = k.shape[2]
    context = DispatchContext.of(q, k, call)
    runs = {"flex": lambda: flex_block_selected(q, k, v, chosen, block_size, call.written_out())}
    out, path = try_path("blocks", context, runs)
    if out is not None:
        return out
    if path == "cpu-blocks":
        q, k, v = same_dtype(q, k, v)
        numbers = block_size, int(call.causal)
        return attend_parts(
            "blocks", q, k, v, call.scale_for(q.shape[-1]), (), [call.key_mask, chosen], numbers, 0.0, call.sink_scores
        )
    rows = BYTE_CACHE.get(("rows", length, block_size, q.device), lambda: rows_of(length, block_size, q.device))
    tiles = [GatherTile(rows, rows, causal=call.causal)]  # every query's own block
    if chosen.shape[3]:
        tiles += selected_block_tiles(chosen, block_size, length)
    return gathered_attention(q, k, v, tiles, call)


def selected_block_tiles(chosen: Tensor, block_size: int, length: int) -> list[GatherTile]:
    """Tiles of the selected blocks: query i attends to every block in ``chosen[i]``.

    Args:
        chosen: ``(B, H, N, K)`` int64, block indices without duplicates per query; -1 is an empty slot.
        block_size: block m holds the keys ``m * block_size …``, below ``length``.
    Returns:
        At most K tiles, since a tile lists a query at most once. Tile j has the j-th lowest block of each query. So a
        tile covers few different blocks, and few of its rows are partly empty.
    """
    batch, heads, count, ranks = chosen.shape
    blocks = -(-length // block_size)
    row_size = min(MAX_ROW_QUERIES, block_size)
    # (K, B, H, N): the j-th lowest block of each query; ``blocks`` stands for an empty slot.
    chosen = torch.where(chosen < 0, blocks, chosen).sort(-1).values.permute(3, 0, 1, 2)
    # For each j, the queries in the order of their blocks.
    block, query = chosen.sort(dim=-1, stable=True)
    # (K, B, H, blocks + 1): the queries of each block, how many come before them, and the tile rows that they fill.
    size = chosen.new_zeros(ranks, batch, heads, blocks + 1).scatter_add(-1, chosen, torch.ones_like(chosen))
    begin = size.cumsum(-1) - size
    rows = (size + row_size - 1) // row_size
    rows[..., blocks] = 0
    last_row = rows.cumsum(-1)
    if in_graph():
        rows_of_tiles = [count // row_size + blocks] * ranks
    else:
        rows_of_tiles = last_row[..., -1].amax((1, 2)).tolist()
    most = max(rows_of_tiles)
    # A query's slot lies after the tile rows of all lower blocks. Queries without a block go to one slot after the
    # last tile row.
    first_slot = ((last_row - rows) * row_size).gather(-1, block)
    slot = torch.arange(count, device=chosen.device) - begin.gather(-1, block) + first_slot
    slot = torch.where(block < blocks, slot, most * row_size)
    listed = torch.full((ranks, batch, heads, most * row_size + 1), -1, device=chosen.device).scatter(-1, slot, query)
    queries = listed[..., :-1].unflatten(-1, (most, row_size))
    # The keys of each row are those of its block.
    row = torch.arange(most, device=chosen.device).expand(ranks, batch, heads, most).contiguous()
    row_block = torch.searchsorted(last_row, row, right=True)
    keys = (row_block * block_size)[..., None] + torch.arange(block_size, device=chosen.device)
    keys = torch.where((row_block < blocks)[..., None] & (keys < length), keys, -1)
    return [GatherTile(queries[j, :, :, :n], keys[j, :, :, :n]) for j, n in enumerate(rows_of_tiles) if n]
