"""Patterns of positions: strided, fixed, segmented, hierarchical, transformer_xl, recurrent_memory and unions."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from . import definition_of
from ._loops import Call, Sees, first_tokens, is_real, masked_attention, real_positions, scores_of


def sees_strided(
    module: nn.Module, k: Tensor, causal: bool, padding_mask: Tensor | None, global_mask: Tensor | None
) -> Sees:
    """Strided attention: Child et al. 2019, Generating Long Sequences with Sparse Transformers, section 4.3.

    A^(1)_i = {t, …, i} with t = i - l, here the last w tokens with the query among them, and A^(2)_i = {j : (i - j)
    mod l = 0}, under one softmax (the merged head of equation 7). Both ways the window has w/2 tokens on each side.
    """
    window, stride = module.options.window, module.options.stride

    def seen(b: int, h: int, i: int, j: int) -> bool:
        near = 0 <= i - j < window if causal else abs(i - j) <= window // 2
        return near or (i - j) % stride == 0

    return seen


def draw_options_strided(random: Random, length: int) -> dict[str, Any]:
    return {"window": 2 * random.randint(1, max(1, length // 4)), "stride": random.randint(1, length + 3)}


def sees_fixed(
    module: nn.Module, k: Tensor, causal: bool, padding_mask: Tensor | None, global_mask: Tensor | None
) -> Sees:
    """Fixed attention: Child et al. 2019, Generating Long Sequences with Sparse Transformers, section 4.3.

    A^(1)_i = {j : floor(j/l) = floor(i/l)} and A^(2)_i = {j : j mod l in {t, …, l}} with t = l - c, under one softmax
    (equation 7).
    """
    size, summary = module.options.block_size, module.options.num_summary
    starts = first_tokens(padding_mask, k.shape[0], k.shape[2])

    def seen(b: int, h: int, i: int, j: int) -> bool:
        same_block = (i - starts[b]) // size == (j - starts[b]) // size
        return same_block or (j - starts[b]) % size >= size - summary

    return seen


def draw_options_fixed(random: Random, length: int) -> dict[str, Any]:
    size = random.randint(1, length + 3)
    return {"block_size": size, "num_summary": random.randint(1, size)}


def define_segmented(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Attention inside blocks: Qiu et al. 2020, BlockBERT, section 3 (a query sees the block of keys that its
    permutation gives it).

    ``none`` is its identity permutation, ``previous`` joins identity and shift under one softmax. ``pooled`` and
    ``attention`` see each other block as one key and value: Ren et al. 2021, Combiner, sections 3.1 and 4.1, an
    expectation over a region with weights p_j, here 1/n or the softmax of the keys' products with their mean. To a
    score term a summary stands at the mean position of its tokens, rounded down.
    """
    causal, padding_mask, scaling, score_mod = call.causal, call.padding_mask, call.scaling, call.score_mod
    size, integration = module.options.block_size, module.options.integration
    length = k.shape[2]
    starts = first_tokens(padding_mask, k.shape[0], length)

    def block(b: int, i: int) -> int:
        return (i - starts[b]) // size

    if integration in ("none", "previous"):
        seen = sees_segmented(module, k, causal, padding_mask)
        return masked_attention(q, k, v, seen, call)

    batch, heads, q_len, _ = q.shape
    out = torch.zeros(q.shape, dtype=torch.float64)
    for b in range(batch):
        members: dict[int, list[int]] = {}
        for j in real_positions(padding_mask, b, length):
            members.setdefault(block(b, j), []).append(j)
        for h in range(heads):
            keys, values = k[b, h * k.shape[1] // heads], v[b, h * k.shape[1] // heads]
            summaries = {}
            for m, tokens in members.items():
                summaries[m] = (keys[tokens].mean(0), values[tokens].mean(0))
            for row in range(q_len):
                i = length - q_len + row
                if not is_real(padding_mask, b, i):
                    continue
                own = block(b, i)
                tokens = [j for j in members[own] if j <= i or not causal]
                others = [m for m in members if m < own or (m > own and not causal)]
                places = tokens + [sum(members[m]) // len(members[m]) for m in others]
                met = torch.cat([keys[tokens], *(summaries[m][0][None] for m in others)])
                seen = torch.cat([values[tokens], *(summaries[m][1][None] for m in others)])
                scores = scores_of(q[b, h, row], met, places, scaling=scaling, score_mod=score_mod, b=b, h=h, i=i)
                out[b, h, row] = torch.softmax(scores, 0) @ seen
    return out


def sees_segmented(
    module: nn.Module, k: Tensor, causal: bool, padding_mask: Tensor | None, global_mask: Tensor | None = None
) -> Sees:
    """The mask of ``none`` and ``previous``."""
    size, reach = module.options.block_size, int(module.options.integration == "previous")
    starts = first_tokens(padding_mask, k.shape[0], k.shape[2])
    return lambda b, h, i, j: abs((i - starts[b]) // size - (j - starts[b]) // size) <= reach


def draw_options_segmented(random: Random, length: int) -> dict[str, Any]:
    return {
        "block_size": random.randint(1, length + 2),
        "integration": random.choice(("none", "previous", "pooled")),
    }


def define_hierarchical(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Pooled keys that grow coarser with distance: Zhu & Soricut 2021, H-Transformer-1D, sections 4 and 6 (equations
    25 to 29).

    Blocks of b tokens are joined two by two from level to level. On level 0 a query meets the tokens of its block and
    of the two beside it; on level l, in its block of level l and the two beside it, what it has not met on a lower
    level, as means of 2^l tokens; on the last level all the rest. Each pool weighs (its number of tokens) · exp(q ·
    mean key · scale) on its mean value. Queries are not coarsened. To a score term a pool stands in its middle, or at
    the last token where the text ends before that.
    """
    causal, padding_mask, scaling, score_mod = call.causal, call.padding_mask, call.scaling, call.score_mod
    size, levels = module.options.block_size, module.options.levels
    batch, heads, q_len, _ = q.shape
    length = k.shape[2]
    starts = first_tokens(padding_mask, batch, length)

    def level_of(i: int, j: int) -> int:
        """The first level on which the blocks of i and j are the same or neighbours."""
        level = 0
        while level + 1 != levels and abs(i // (size << level) - j // (size << level)) > 1:
            level += 1
        return level

    out = torch.zeros(q.shape, dtype=torch.float64)
    for b in range(batch):
        real = real_positions(padding_mask, b, length)
        for row in range(q_len):
            i = length - q_len + row
            if i not in real:
                continue
            pools: dict[tuple[int, int], list[int]] = {}
            for j in real:
                if j <= i or not causal:
                    level = level_of(i - starts[b], j - starts[b])
                    pools.setdefault((level, (j - starts[b]) >> level), []).append(j)
            counts = torch.tensor([len(pool) for pool in pools.values()], dtype=torch.float64)
            places = [min(starts[b] + (number << level) + (1 << level) // 2, real[-1]) for level, number in pools]
            mean = torch.zeros(len(pools), length, dtype=torch.float64)
            for n, pool in enumerate(pools.values()):
                mean[n, pool] = 1 / len(pool)
            for h in range(heads):
                keys, values = k[b, h * k.shape[1] // heads], v[b, h * k.shape[1] // heads]
                scores = scores_of(
                    q[b, h, row], mean @ keys, places, scaling=scaling, score_mod=score_mod, b=b, h=h, i=i
                )
                out[b, h, row] = torch.softmax(scores + counts.log(), 0) @ (mean @ values)
    return out


def draw_options_hierarchical(random: Random, length: int) -> dict[str, Any]:
    return {
        "block_size": 2 * random.randint(1, max(1, length // 6)),
        "levels": random.choice((None, None, 1, 2, 3)),
    }


def define_transformer_xl(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Transformer-XL's recurrence: Dai et al. 2019, Attentive Language Models beyond a Fixed-Length Context, section
    3.2.

    A segment of S tokens sees itself and the M tokens before it, whose states are constants: h̃ = [SG(h_τ) ∘ h_τ+1].
    """
    causal, padding_mask, scaling, score_mod = call.causal, call.padding_mask, call.scaling, call.score_mod
    segment, memory, bptt = module.options.segment_length, module.options.memory_length, module.options.bptt
    batch, heads, q_len, width = q.shape
    kv_len, group = k.shape[2], heads // k.shape[1]
    starts = first_tokens(padding_mask, batch, kv_len)
    out = []
    for b in range(batch):
        for h in range(heads):
            keys, values = k[b, h // group], v[b, h // group]
            for row in range(q_len):
                i = kv_len - q_len + row
                begin = starts[b] + (i - starts[b]) // segment * segment
                end = i if causal else begin + segment - 1
                seen = [j for j in range(begin - memory, end + 1) if 0 <= j < kv_len and is_real(padding_mask, b, j)]
                if not seen or not is_real(padding_mask, b, i):
                    out.append(torch.zeros(width, dtype=torch.float64))
                    continue
                passed = torch.tensor([[bptt or j >= begin] for j in seen])  # where gradients pass
                met, read = (torch.where(passed, x[seen], x[seen].detach()) for x in (keys, values))
                scores = scores_of(q[b, h, row], met, seen, scaling=scaling, score_mod=score_mod, b=b, h=h, i=i)
                out.append(scores.softmax(0) @ read)
    return torch.stack(out).reshape(batch, heads, q_len, width)


def is_constant_transformer_xl(
    module: nn.Module, padding_mask: Tensor | None, k: Tensor, b: int, i: int, j: int
) -> bool:
    """Whether query i meets key j in the memory, which no gradient enters."""
    start, segment = first_tokens(padding_mask, k.shape[0], k.shape[2])[b], module.options.segment_length
    return not module.options.bptt and j < start + (i - start) // segment * segment


def draw_options_transformer_xl(random: Random, length: int) -> dict[str, Any]:
    return {
        "segment_length": random.randint(1, length + 2),
        "memory_length": random.randint(0, length + 2),
        "bptt": random.choice((False, True)),
    }


def define_recurrent_memory(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Recurrent memory transformer: Bulatov et al. 2022, section 3.2. A layer's part is full attention inside one
    segment.

    Memory tokens are tokens of the model's input, and passing them on is the model's work;
    ``tests/modeling/test_memories.py`` runs it.
    """
    padding_mask = call.padding_mask
    segment = module.options.segment_length
    starts = first_tokens(padding_mask, k.shape[0], k.shape[2])

    def sees(b: int, h: int, i: int, j: int) -> bool:
        return (i - starts[b]) // segment == (j - starts[b]) // segment

    return masked_attention(q, k, v, sees, call)


def draw_options_recurrent_memory(random: Random, length: int) -> dict[str, Any]:
    memory = random.randint(1, 4)
    return {"segment_length": 2 * memory + random.randint(2, length + 2), "num_memory_tokens": memory}


def sees_union(
    module: nn.Module, k: Tensor, causal: bool, padding_mask: Tensor | None, global_mask: Tensor | None
) -> Sees:
    """Several masks under one softmax: Child et al. 2019, Generating Long Sequences with Sparse Transformers, section
    4.3, equation 7.

    attention(X) = W_p · attend(X, ∪_m A^(m)): a key is seen when it is in any of the sets, and counts once.
    """
    masks = [
        definition_of(member.name).sees(member, k, causal, padding_mask, global_mask) for member in module.members
    ]
    return lambda b, h, i, j: any(mask(b, h, i, j) for mask in masks)


def draw_options_union(random: Random, length: int) -> dict[str, Any]:
    near = 2 * random.randint(1, max(1, length // 8))
    masks = [
        f"window:window={near},num_sinks={random.randint(0, 3)}",
        f"window:window={near},dilation=2",
        f"strided:window=2,stride={random.randint(1, length)}",
        f"fixed:block_size={random.randint(4, length + 4)},num_summary={random.randint(1, 4)}",
        f"segmented:block_size={random.randint(1, length)},integration={random.choice(('none', 'previous'))}",
        f"longformer:window=2,global_tokens={random.randrange(length)}",
    ]
    return {"of": "+".join(random.sample(masks, random.randint(2, 3)))}
