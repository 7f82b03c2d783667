"""A mechanism for each head: Child et al. 2019, Generating Long Sequences with Sparse Transformers, section 4.3, equation 8.

attention(X) = W_p (attend(X, A^(m_h)))_h: head h attends with its own pattern, and the heads are concatenated. Numbered choices are for
their heads; the others take turns over the rest.
"""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from . import add_noise, definition_of


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, score_mod: Any = None, **arguments: Any) -> Tensor:
    heads, group = q.shape[1], q.shape[1] // k.shape[1]
    choices = module.options.heads
    taken = {h: number for number, choice in enumerate(choices) for h in choice.heads or ()}
    in_turn = [number for number, choice in enumerate(choices) if choice.heads is None]
    rest = [h for h in range(heads) if h not in taken]
    taken |= {h: in_turn[place % len(in_turn)] for place, h in enumerate(rest)}
    used = [number for number in range(len(choices)) if number in taken.values()]
    out: list[Tensor] = [torch.empty(0)] * heads
    for member, number in zip(module.members, used, strict=True):
        mine = [h for h in range(heads) if taken[h] == number]
        shared = [h // group for h in mine]
        assert member.name == choices[number].mechanism
        term = None if score_mod is None else _of_heads(score_mod, torch.tensor(mine))
        rows = definition_of(member.name).define(member, q[:, mine], k[:, shared], v[:, shared], score_mod=term, **arguments)
        for place, h in enumerate(mine):
            out[h] = rows[:, place]
    return torch.stack(out, 1)


def _of_heads(score_mod: Any, heads: Tensor) -> Any:
    return lambda score, b, h, q_idx, kv_idx: score_mod(score, b, heads[h], q_idx, kv_idx)


def draw_options(random: Random, length: int) -> dict[str, Any]:
    return {"heads": random.choice(_members(random, length))}  # one for all heads; what follows replaces it where there are several


def draw_options_of_heads(random: Random, heads: int, length: int) -> dict[str, Any]:
    if heads == 1:
        return {}
    chosen = random.sample(_members(random, length), min(heads, 3))
    if random.random() < 0.5:
        return {"heads": ",".join(chosen)}
    return {"heads": f"{random.randrange(heads)}={chosen[0]};" + ",".join(chosen[1:])}


def _members(random: Random, length: int) -> list[str]:
    return [
        f"window:window={2 * random.randint(1, length)},num_sinks={random.randint(0, 2)}",
        f"longformer:window=2,global_tokens={random.randrange(length)}",
        f"top_k:num_keys={random.randint(1, length)}",
        f"adaptive_span:max_span={random.randint(1, length)}",
        f"bigbird:block_size={random.randint(1, length // 9 + 1)},seed={random.randrange(9)}",
        f"lsh:bucket_size={random.randint(1, length)},num_hashes=2,num_buckets=4",
        f"routing:num_clusters=3,window_per_cluster={random.randint(1, length)},router=learned",
        f"hierarchical:block_size={2 * random.randint(1, length)}",
        "full",
    ]


def draw_parameters(module: nn.Module) -> None:
    for member in module.members:
        getattr(definition_of(member.name), "draw_parameters", add_noise)(member)


always_visible = None  # what its members see
