"""Attention between tokens whose hashes agree: Kitaev et al. 2020, Reformer, section 2, with the hash of Andoni et al. 2015.

h(x) = argmax([xR; -xR]) for a random R. Tokens are sorted by bucket, then by position, and cut into chunks; a query sees its own chunk and
those beside it (equation 3 and the paragraph on chunks). Several rounds are a union of sets, P_i = ∪_r P_i^(r) (equation 6), in which a
key counts once; with ``count_duplicates`` once for every time it is met, as where rounds are merged by their log-sum-exp.

Causal: the last ``bucket_size`` keys of the query's bucket, up to itself; a query that meets none sees itself. Shared QK: queries are the
keys' own vectors, keys are divided by their root mean square (as transformers' Reformer does, with its 1e-6), and a token sees itself only
if it sees nothing else.

The rotations are the module's buffer, (heads, D, rounds, sum of factors / 2). A large number of buckets is a product of factors, each with
another rotation, as in transformers' Reformer.
"""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._loops import masked_attention, real_positions


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, scaling: float | None,
           score_mod: Any = None, **_: Any) -> Tensor:  # fmt: skip
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
                rounds.append((order, [order[n : n + options.bucket_size] for n in range(0, len(order), options.bucket_size)]))
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
                    beside = {(own + step) % len(chunks) for step in range(-options.num_chunks_before, options.num_chunks_after + 1)}
                    here += [j for chunk in beside for _, j in chunks[chunk]]
                if options.shared_qk and set(here) != {i}:
                    here = [j for j in here if j != i]
                met[b, h, i] = (here if options.count_duplicates else list(set(here))) or [i]

    if options.shared_qk:
        k = k * torch.rsqrt((k**2).mean(-1, keepdim=True) + 1e-6)
    return masked_attention(
        q, k, v, lambda b, h, i, j: met[b, h, i].count(j) if (b, h, i) in met else 0,
        causal=causal, padding_mask=padding_mask, scaling=scaling, score_mod=score_mod,
    )  # fmt: skip


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


def draw_options(random: Random, length: int) -> dict[str, Any]:
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
