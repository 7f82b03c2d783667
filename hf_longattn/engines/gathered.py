"""The gathered engine: softmax attention of rows of queries over rows of keys, both given as lists of positions.

Every static or dynamic block pattern, every set of columns, every bucket of a hash is a :class:`~hf_longattn.engines.pattern.GatherTile`:
R rows, each of which pairs some queries with some keys. A query may appear in several parts; what it sees is the union of their keys
under *one* softmax, because the parts' outputs are merged by their log-sum-exp. So the cost is the number of listed pairs, whatever
their arrangement.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .call import AttentionCall
from .cpu_gathered import Rules, cpu_gathered, flat_rules
from .dense import same_dtype
from .flex import flex_gathered
from .pattern import GatherTile
from .plain import plain_gathered


def gathered_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    parts: Sequence[GatherTile],
    call: AttentionCall,
) -> Tensor:
    """Softmax attention over the union of the parts' pairs.

    Args:
        q: ``(B, H, Nq, D)``; position i of the queries' axis is position i of the keys' axis.
        k, v: ``(B, H, Nk, D)``; Nk may exceed Nq, for instance by summaries that stand behind the tokens' own keys.
        parts: which pairs.
        call: its padding mask, scale, dropout and score term; causality is the parts'.
    Returns:
        ``(B, H, Nq, D)`` in the dtype of q. Queries that see nothing are zeros, with zero gradients.
    """
    q, k, v = same_dtype(q, k, v)
    key_mask, scale, dropout_p, score_mod = call.key_mask, call.scale_for(q.shape[-1]), call.dropout, call.score_mod
    learned = any(part.bias is not None and part.bias.requires_grad for part in parts)
    if q.device.type == "cpu" and dropout_p == 0.0 and score_mod is None and not learned:
        rules = flat_rules([Rules.of(part.causal, part.inside, part.outside) for part in parts])
        queries, keys, biases = ([getattr(part, name) for part in parts] for name in ("queries", "keys", "bias"))
        return cpu_gathered(q, k, v, key_mask, queries, keys, biases, rules, scale)[0]
    if q.device.type == "cuda" and dropout_p == 0.0 and not torch.compiler.is_compiling():
        out = flex_gathered(q, k, v, parts, key_mask=key_mask, scale=scale, score_mod=score_mod)
        if out is not None:
            return out
    return plain_gathered(q, k, v, parts, key_mask=key_mask, scale=scale, dropout_p=dropout_p, score_mod=score_mod)
