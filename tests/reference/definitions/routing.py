"""Attention between the members of a cluster: Roy et al. 2020, Routing Transformer, section 4.1 and algorithm 1.

Routing vectors are the queries and keys after a layer normalisation without scale and bias; the affinity to a cluster is their product
with its centroid. A query goes to the cluster of its highest affinity and sees the w keys with the highest affinity to it (top-k of
algorithm 1); causal, the last w keys of the same cluster. ``window`` adds the keys around each query. ``normalise`` takes the scores from
the routing vectors, too, as algorithm 1 does.

A learned router W_r stands for the centroids; both ways its logits are balanced over the keys of a sequence by Sinkhorn's iteration, so
that each cluster has the same share of them, and log p of the key for the query's cluster is added to the scores.

Centroids (a buffer) or W_r (a parameter) are the module's, (heads, clusters, D).
"""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._loops import is_real, masked_attention, real_positions

SINKHORN_STEPS = 8


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, scaling: float | None,
           score_mod: Any = None, **_: Any) -> Tensor:  # fmt: skip
    options, size = module.options, module.size
    learned = options.router == "learned"
    centroids = (dict(module.named_parameters())["router"] if learned else dict(module.named_buffers())["centroids"]).double()
    heads, group, length, q_len = q.shape[1], q.shape[1] // k.shape[1], k.shape[2], q.shape[2]
    logits = {
        "q": torch.einsum("bhnd,hcd->bhnc", layer_norm(q), centroids),
        "k": torch.einsum("bhnd,hcd->bhnc", layer_norm(k.repeat_interleave(group, 1)), centroids),
    }
    met: dict[tuple[int, int, int], set[int]] = {}
    log_p: dict[tuple[int, int, int], Tensor] = {}
    for b in range(k.shape[0]):
        real = real_positions(padding_mask, b, length)
        if not real:
            continue
        for h in range(heads):
            balance = sinkhorn(logits["k"][b, h, real].detach()) if learned and not causal else torch.zeros(centroids.shape[1])
            of_keys = logits["k"][b, h] + balance
            of_queries = logits["q"][b, h] + balance
            ranking = torch.log_softmax(of_keys, -1) if learned else of_keys
            for i in range(length - q_len, length):
                if not is_real(padding_mask, b, i):
                    continue
                cluster = int(of_queries[i - length + q_len].argmax())
                if causal:
                    members = [j for j in real if j <= i and int(of_keys[j].argmax()) == cluster][-size:]
                else:
                    members = sorted(real, key=lambda j: (-float(ranking[j, cluster].detach()), j))[:size]
                around = [j for j in real if in_window(i, j, options.window, causal)]
                met[b, h, i] = {*members, *around} or {i}
                log_p[b, h, i] = torch.log_softmax(of_keys, -1)[:, cluster]

    def term(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        score = score if score_mod is None else score_mod(score, b, h, i, j)
        return score + log_p[int(b), int(h), int(i)][j] if learned else score

    if options.normalise:
        q, k = layer_norm(q), layer_norm(k)
    return masked_attention(
        q, k, v, lambda b, h, i, j: j in met.get((b, h, i), ()), causal=causal, padding_mask=padding_mask, scaling=scaling, score_mod=term
    )


def layer_norm(x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / ((x**2).mean(-1, keepdim=True) + 1e-5).sqrt()


def in_window(i: int, j: int, window: int, causal: bool) -> bool:
    return window > 0 and (0 <= i - j < window if causal else abs(i - j) <= window // 2)


def sinkhorn(logits: Tensor) -> Tensor:
    """What to add to each cluster's logits so that each has the same share of the tokens, ``(clusters,)``."""
    tokens, clusters = logits.shape
    balance = torch.zeros(clusters, dtype=torch.float64)
    for _ in range(SINKHORN_STEPS):
        shares = torch.softmax(logits + balance, -1).sum(0)
        balance = balance + torch.log(tokens / clusters / shares)
    return balance


def draw_options(random: Random, length: int) -> dict[str, Any]:
    return {
        "num_clusters": random.choice((None, 1, 2, 3, 5)),
        "window_per_cluster": random.choice((None, random.randint(1, length))),
        "window": random.choice((0, 0, 2, 6)),
        "router": random.choice(("kmeans", "learned")),
        "normalise": random.random() < 0.4,
        "seed": random.randint(0, 9),
    }
