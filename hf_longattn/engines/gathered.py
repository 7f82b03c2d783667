"""The gathered engine: softmax attention of rows of queries over rows of keys, both given as lists of positions.

Every static or dynamic block pattern, every set of columns, every hash bucket is a :class:`~hf_longattn.engines.call.GatherTile`:
R rows, each of which pairs some queries with some keys. A query may appear in several tiles; it attends to the union of their keys
under *one* softmax, because the tiles' outputs are merged by their log-sum-exp. The cost is the number of listed pairs, in any arrangement.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .call import AttentionCall, GatherTile
from .cpu_gathered import Rules, cpu_gathered, flat_rules
from .dense import same_dtype
from .dispatch import Facts, choose
from .flex import flex_gathered
from .plain import plain_gathered


def gathered_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tiles: Sequence[GatherTile],
    call: AttentionCall,
) -> Tensor:
    """Softmax attention over the union of the tiles' pairs.

    Args:
        q: ``(B, H, Nq, D)``; position i of the queries' axis is position i of the keys' axis.
        k, v: ``(B, H, Nk, D)``; Nk may exceed Nq, for instance by summaries after the tokens' keys.
        tiles: the pairs.
        call: its padding mask, scale, dropout and score term; causality is the tiles'.
    Returns:
        ``(B, H, Nq, D)`` in the dtype of q. Queries that see nothing are zeros, with zero gradients.
    """
    q, k, v = same_dtype(q, k, v)
    learned = any(tile.bias is not None and tile.bias.requires_grad for tile in tiles)
    facts = Facts(q.device.type, q.shape[2], k.shape[2], call, learned_bias=learned)
    path = choose("tiles", facts)
    if path == "cpu-gathered":
        rules = flat_rules([Rules.of(tile.causal, tile.inside, tile.outside) for tile in tiles])
        queries, keys, biases = ([getattr(tile, name) for tile in tiles] for name in ("queries", "keys", "bias"))
        return cpu_gathered(q, k, v, call.key_mask, queries, keys, biases, rules, call.scale_for(q.shape[-1]))[0]
    if path == "flex-gathered":
        out = flex_gathered(q, k, v, tiles, call)
        if out is not None:
            return out
        choose("tiles", facts, unavailable=path)
    return plain_gathered(q, k, v, tiles, call)
