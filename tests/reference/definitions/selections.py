"""Keys chosen by content: top_k, block_top_k, lsh and routing."""

from __future__ import annotations

import dataclasses
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._loops import Call, Head, Sees, attend_to_seen, first_tokens, is_real, masked_attention, real_positions


def define_top_k(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """The k best keys of each query: Gupta et al. 2021, Memory-efficient Transformers via Top-k Attention, section 2.

    softmax over topk(Q Kᵀ): all other scores are taken as -infinity. Of equal scores the earlier key is kept.
    """

    def output(head: Head, i: int, keys: list[int], scores: Tensor) -> Tensor:
        best = sorted(range(len(keys)), key=lambda n: (-float(scores[n].detach()), n))[: module.options.num_keys]
        return torch.softmax(scores[best], 0) @ head.v[[keys[n] for n in best]]

    return attend_to_seen(q, k, v, call, output)


def draw_options_top_k(random: Random, length: int) -> dict[str, Any]:
    return {"num_keys": random.randint(1, length + 2)}


def define_block_top_k(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """The best blocks of keys of each query: Lu et al. 2025, MoBA: Mixture of Block Attention, section 2.2, equations
    2 to 6.

    A query's affinity to a block is its product with the block's mean key (equation 6); it sees the blocks of the k
    highest (equation 5), its own always among them, and no block of the future.
    """
    causal, padding_mask = call.causal, call.padding_mask
    seen = sees_block_top_k(module, q.detach(), k.detach(), causal, padding_mask)
    return masked_attention(q, k, v, seen, call)


def sees_block_top_k(module: nn.Module, q: Tensor, k: Tensor, causal: bool, padding_mask: Tensor | None) -> Sees:
    options = module.options
    length, q_len, heads = k.shape[2], q.shape[2], q.shape[1]
    starts = first_tokens(padding_mask, k.shape[0], length)
    chosen: dict[tuple[int, int, int], set[int]] = {}
    for b in range(k.shape[0]):
        members: dict[int, list[int]] = {}
        for j in real_positions(padding_mask, b, length):
            members.setdefault((j - starts[b]) // options.block_size, []).append(j)
        for h in range(heads):
            means = {m: k[b, h * k.shape[1] // heads, tokens].mean(0) for m, tokens in members.items()}
            for own, tokens in members.items():
                for i in tokens:
                    if i < length - q_len:
                        continue
                    query = q[b, h, i - length + q_len]
                    others = [m for m in means if m < own or (m > own and not causal)]
                    others.sort(key=lambda m: (-float(query @ means[m]), m))
                    chosen[b, h, i] = {own, *others[: options.num_blocks - 1]}
    return lambda b, h, i, j: (j - starts[b]) // options.block_size in chosen.get((b, h, i), ())


def draw_options_block_top_k(random: Random, length: int) -> dict[str, Any]:
    return {
        "block_size": random.randint(1, length // 2 + 2),
        "num_blocks": random.randint(1, 5),
    }


def define_lsh(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Attention between tokens whose hashes agree: Kitaev et al. 2020, Reformer, section 2, with the hash of Andoni et
    al. 2015.

    h(x) = argmax([xR; -xR]) for a random R. Tokens are sorted by bucket, then by position, and cut into chunks; a
    query sees its own chunk and those beside it (equation 3 and the paragraph on chunks). Several rounds are a union
    of sets, P_i = ∪_r P_i^(r) (equation 6), in which a key counts once; with ``count_duplicates`` once for every time
    it is met, as where rounds are merged by their log-sum-exp.

    Causal: the last ``bucket_size`` keys of the query's bucket, up to itself; a query that meets none sees itself.
    Shared QK: queries are the keys' own vectors, keys are divided by their root mean square (as transformers' Reformer
    does, with its 1e-6), and a token sees itself only if it sees nothing else.

    The rotations are the module's buffer, (heads, D, rounds, sum of factors / 2). A large number of buckets is a
    product of factors, each with another rotation, as in transformers' Reformer.
    """
    causal, padding_mask = call.causal, call.padding_mask
    options = module.options
    heads, group, length, q_len = q.shape[1], q.shape[1] // k.shape[1], k.shape[2], q.shape[2]
    if options.shared_qk:
        q = k.repeat_interleave(group, 1)[:, :, length - q_len :]
    hashed_queries, hashed_keys = hashes(module, q), hashes(module, k.repeat_interleave(group, 1))
    met: dict[tuple[int, int, int], list[int]] = {}
    for b in range(k.shape[0]):
        real = real_positions(padding_mask, b, length)
        for h in range(heads):
            rounds = []
            for r in range(options.num_hashes):
                order = sorted((int(hashed_keys[b, h, j, r]), j) for j in real)
                rounds.append(
                    (order, [order[n : n + options.bucket_size] for n in range(0, len(order), options.bucket_size)])
                )
            for i in real:
                if i < length - q_len:
                    continue
                here: list[int] = []
                for r, (order, chunks) in enumerate(rounds):
                    bucket = int(hashed_queries[b, h, i - length + q_len, r])
                    if causal:
                        same = [j for of_key, j in order if of_key == bucket and j <= i]
                        here += same[-options.bucket_size :]
                        continue
                    place = sum(entry < (bucket, i) for entry in order)
                    own = min(place // options.bucket_size, len(chunks) - 1)
                    beside = {
                        (own + step) % len(chunks)
                        for step in range(-options.num_chunks_before, options.num_chunks_after + 1)
                    }
                    here += [j for chunk in beside for _, j in chunks[chunk]]
                if options.shared_qk and set(here) != {i}:
                    here = [j for j in here if j != i]
                met[b, h, i] = (here if options.count_duplicates else list(set(here))) or [i]

    if options.shared_qk:
        k = k * torch.rsqrt((k**2).mean(-1, keepdim=True) + 1e-6)
    return masked_attention(q, k, v, lambda b, h, i, j: met[b, h, i].count(j) if (b, h, i) in met else 0, call)


def hashes(module: nn.Module, x: Tensor) -> Tensor:
    """The bucket of every vector in every round, ``(B, H, N, rounds)``."""
    rotations = dict(module.named_buffers())["rotations"].double()
    rotated = torch.einsum("bhnd,hdrf->bhnrf", x.detach(), rotations)
    buckets = torch.zeros(rotated.shape[:-1], dtype=torch.long)
    start, product = 0, 1
    for factor in module.factors:
        part = rotated[..., start : start + factor // 2]
        buckets += product * torch.cat([part, -part], -1).argmax(-1)
        start, product = start + factor // 2, product * factor
    return buckets


def draw_options_lsh(random: Random, length: int) -> dict[str, Any]:
    return {
        "num_hashes": random.randint(1, 3),
        "bucket_size": random.randint(1, length // 2 + 2),
        "num_buckets": random.choice((None, 1, 2, 4, 6, 64)),
        "shared_qk": random.random() < 0.5,
        "num_chunks_before": random.randint(0, 2),
        "num_chunks_after": random.randint(0, 2),
        "count_duplicates": random.random() < 0.3,
        "seed": random.randint(0, 9),
    }


SINKHORN_STEPS = 8


def define_routing(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Attention between the members of a cluster: Roy et al. 2020, Routing Transformer, section 4.1 and algorithm 1.

    Routing vectors are the queries and keys after a layer normalisation without scale and bias; the affinity to a
    cluster is their product with its centroid. A query goes to the cluster of its highest affinity and sees the w keys
    with the highest affinity to it (top-k of algorithm 1); causal, the last w keys of the same cluster.

    A learned router W_r stands for the centroids; both ways its logits are balanced over the keys of a sequence by
    Sinkhorn's iteration, so that each cluster has the same share of them, and log p of the key for the query's cluster
    is added to the scores.

    Centroids (a buffer) or W_r (a parameter) are the module's, (heads, clusters, D).
    """
    causal, padding_mask, score_mod = call.causal, call.padding_mask, call.score_mod
    options, size = module.options, module.size
    learned = options.router == "learned"
    centroids = (
        dict(module.named_parameters())["router"] if learned else dict(module.named_buffers())["centroids"]
    ).double()
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
            balance = (
                sinkhorn(logits["k"][b, h, real].detach())
                if learned and not causal
                else torch.zeros(centroids.shape[1])
            )
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
                met[b, h, i] = {*members} or {i}
                log_p[b, h, i] = torch.log_softmax(of_keys, -1)[:, cluster]

    def term(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        score = score if score_mod is None else score_mod(score, b, h, i, j)
        return score + log_p[int(b), int(h), int(i)][j] if learned else score

    return masked_attention(
        q, k, v, lambda b, h, i, j: j in met.get((b, h, i), ()), dataclasses.replace(call, score_mod=term)
    )


def layer_norm(x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / ((x**2).mean(-1, keepdim=True) + 1e-5).sqrt()


def sinkhorn(logits: Tensor) -> Tensor:
    """What to add to each cluster's logits so that each has the same share of the tokens, ``(clusters,)``."""
    tokens, clusters = logits.shape
    balance = torch.zeros(clusters, dtype=torch.float64)
    for _ in range(SINKHORN_STEPS):
        shares = torch.softmax(logits + balance, -1).sum(0)
        balance = balance + torch.log(tokens / clusters / shares)
    return balance


def draw_options_routing(random: Random, length: int) -> dict[str, Any]:
    return {
        "num_clusters": random.choice((None, 1, 2, 3, 5)),
        "window_per_cluster": random.choice((None, random.randint(1, length))),
        "router": random.choice(("kmeans", "learned")),
        "seed": random.randint(0, 9),
    }
