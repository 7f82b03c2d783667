"""The gathered engine: softmax attention between rows of queries and keys, listed by position.

A block pattern, a set of columns or the buckets of a hash can be a :class:`~hf_longattn.engines.call.GatherTile`: R rows, each
with some queries and some keys. A query may appear in several tiles. It attends to the union of their keys under *one* softmax, because the
outputs of tiles are merged by log-sum-exp. The cost is proportional to the number of listed pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .batch import nothing_seen
from .blockwise import plain_gathered
from .call import AttentionCall, DispatchContext, GatherTile
from .cpu.gathered import flat_rules
from .cpu.softmax import attend_parts
from .cuda.flex_tiles import flex_gathered
from .dense import repeat_heads, same_dtype
from .dispatch import try_path


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
    context = DispatchContext.of(q, k, call, learned_bias=learned, features=q.shape[3])
    out, path = try_path("tiles", context, {"flex": lambda: flex_gathered(q, k, v, tiles, call.written_out())})
    if out is not None:
        return out
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    if path == "cpu-gathered":
        lists = [getattr(tile, name) for name in ("queries", "keys", "bias") for tile in tiles]
        return attend_parts(
            "tiles", q, k, v, call.scale_for(q.shape[-1]), (), [call.key_mask, *lists], flat_rules(tiles), call.dropout,
            call.sink_scores,
        )  # fmt: skip
    return plain_gathered(q, k, v, tiles, call.written_out())
