"""Windows and global tokens: full attention, window, longformer, bigbird and adaptive_span."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._loops import Call, Head, Sees, attend_to_seen, first_tokens, masked_attention, real_positions


def sees_full(
    module: nn.Module, k: Tensor, causal: bool, padding_mask: Tensor | None, global_mask: Tensor | None
) -> Sees:
    """Softmax attention over all keys: Vaswani et al. 2017, Attention Is All You Need, equation 1."""
    return lambda b, h, i, j: True


def draw_options_full(random: Random, length: int) -> dict[str, Any]:
    return {}


def sees_window(
    module: nn.Module, k: Tensor, causal: bool, padding_mask: Tensor | None, global_mask: Tensor | None
) -> Sees:
    """Sliding window: Beltagy et al. 2020, Longformer, section 3.1 (window of w/2 tokens on each side; dilation d:
    gaps of d between its keys).

    Causal: Jiang et al. 2023, Mistral 7B, section 2: the last w tokens, i - w < j <= i. Sinks: Xiao et al. 2023,
    StreamingLLM, section 3.2: the first tokens are seen by everyone besides. ``left`` and ``right``: so many keys on
    each side, as NeMo's ``att_context_size``.
    """
    options = module.options
    starts = first_tokens(padding_mask, k.shape[0], k.shape[2])
    dilations = [options.dilation] if isinstance(options.dilation, int) else list(options.dilation)

    def seen(b: int, h: int, i: int, j: int) -> bool:
        dilation = dilations[h % len(dilations)]
        steps = (i - j) // dilation
        back = options.window - 1 if causal else options.window // 2
        back = back if options.left is None else options.left
        ahead = 0 if causal else options.window // 2 if options.right is None else options.right
        near = (i - j) % dilation == 0 and -ahead <= steps <= back
        return near or j - starts[b] < options.num_sinks

    return seen


def seen_in_pieces(pieces: list[tuple[int, int]], padding_mask: Tensor, window: int, sinks: int) -> Tensor:
    """The keys (B, N, N) that each query sees with ``full_decoding``, if a text is read in ``pieces`` of its tokens,
    from begin to end.

    Yu et al. 2025, SWAA (arXiv 2512.10411): a piece of one token sees all keys, as the authors' kernel does. Queries
    of longer pieces see the last ``window`` tokens and the first ``sinks`` real ones.
    """
    rows, length = padding_mask.shape
    seen = torch.zeros(rows, length, length, dtype=torch.bool)
    for b in range(rows):
        start = int(padding_mask[b].long().argmax())
        for begin, end in pieces:
            for i in range(begin, end):
                for j in range(start, i + 1):
                    seen[b, i, j] = end - begin == 1 or i - j < window or j - start < sinks
    return seen


def draw_options_window(random: Random, length: int) -> dict[str, Any]:
    return {
        "window": 2 * random.randint(1, max(1, length // 2)),
        "left": random.choice((None, None, random.randint(0, length))),
        "right": random.choice((None, None, random.randint(0, length))),
        "num_sinks": random.choice((0, 0, 1, 4)),
        "dilation": random.choice(((1,), (1,), (2,), (3,))),
    }


def draw_options_of_heads_window(random: Random, heads: int, length: int) -> dict[str, Any]:
    return {"dilation": tuple(random.randint(1, 4) for _ in range(heads))} if random.random() < 0.3 else {}


def define_longformer(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Window and global tokens: Beltagy et al. 2020, Longformer, section 3.1.

    A token sees w/2 tokens on each side; a global token sees all and is seen by all. Linear projections for global
    attention: with ``separate_global`` the rows of global tokens are softmax(Q_g K_gᵀ · scale) V_g with separate
    projections.
    """
    out = masked_attention(q, k, v, sees_longformer(module, k, call.causal, call.padding_mask, call.global_mask), call)
    if not module.options.separate_global:
        return out
    batch, heads, length, width = q.shape
    weights = dict(module.named_parameters())

    def projected(name: str) -> Tensor:
        x = (
            call.hidden_states @ weights[f"separate.{name}.weight"].double().T
            + weights[f"separate.{name}.bias"].double()
        )
        return x.reshape(batch, length, heads, width).transpose(1, 2)

    rows = masked_attention(projected("query"), projected("key"), projected("value"), lambda b, h, i, j: True, call)
    tokens = torch.tensor(global_tokens(module, k, call.padding_mask, call.global_mask))
    return torch.where(tokens[:, None, :, None], rows, out)


def sees_longformer(
    module: nn.Module, k: Tensor, causal: bool, padding_mask: Tensor | None, global_mask: Tensor | None
) -> Sees:
    o = module.options
    tokens = global_tokens(module, k, padding_mask, global_mask)
    back = o.left if o.left is not None else o.window - 1 if causal else o.window // 2
    ahead = 0 if causal else o.window // 2 if o.right is None else o.right

    def seen(b: int, h: int, i: int, j: int) -> bool:
        near = j - ahead <= i <= j + back
        return near or tokens[b][i] or tokens[b][j]

    return seen


def global_tokens(
    module: nn.Module, k: Tensor, padding_mask: Tensor | None, global_mask: Tensor | None
) -> list[list[bool]]:
    """Which tokens of each sequence are global: those of the mask, or the option's, which count tokens and no
    padding."""
    tokens = [[False] * k.shape[2] for _ in range(k.shape[0])]
    for b, of_text in enumerate(tokens):
        for place, i in enumerate(real_positions(padding_mask, b, k.shape[2])):
            of_text[i] = place in module.options.global_tokens if global_mask is None else bool(global_mask[b, i])
    return tokens


def draw_options_longformer(random: Random, length: int) -> dict[str, Any]:
    return {
        "window": 2 * random.randint(1, max(1, length // 3)),
        "left": random.choice((None, None, random.randint(0, length))),
        "right": random.choice((None, None, random.randint(0, length))),
        "global_tokens": tuple(sorted(random.sample(range(length), random.randint(0, min(3, length))))),
        "separate_global": random.random() < 0.3,
    }


def needs_all_queries_longformer(module: nn.Module) -> bool:
    return module.options.separate_global


SEEDS_bigbird = (0, 5)


def define_bigbird(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Window, global and random blocks: Zaheer et al. 2020, Big Bird, section 2 and appendix D (blocks).

    Block I sees, of n blocks, the g at each end, the w around it (h = floor(w/2) on each side) and r random ones; the
    g blocks at each end see all. Causal: the g at the beginning, the last w, and r random ones of the past. Appendix D
    has no random blocks for texts that the other blocks cover, and transformers' BigBird attends fully up to 2g + w +
    2r blocks. Tokens of a mask are global besides (section 2, ETC).

    The random blocks are the module's. With ``random_pattern="hf_eval"`` all are the first block, counted on top of
    what a query sees anyway, as transformers has it in evaluation.
    """
    causal, padding_mask, global_mask, seed = call.causal, call.padding_mask, call.global_mask, call.seed
    options = module.options
    size, around, ends, random_blocks = (
        options.block_size,
        options.num_window_blocks,
        options.num_global_blocks,
        options.num_random_blocks,
    )
    batch, length = k.shape[0], k.shape[2]
    if options.blocks_over == "text":
        starts = first_tokens(padding_mask, batch, length)
        lasts = [max(real_positions(padding_mask, b, length), default=0) for b in range(batch)]
    else:
        starts, lasts = [0] * batch, [length - 1] * batch
    counts = [(last - start) // size + 1 for start, last in zip(starts, lasts, strict=True)]
    draws = module.drawn_blocks(torch.tensor(counts), max(counts), causal, seed).tolist()
    tokens = (torch.zeros(batch, length, dtype=torch.bool) if global_mask is None else global_mask).tolist()
    first_block_again = options.random_pattern == "hf_eval"

    def times(b: int, h: int, i: int, j: int) -> int:
        n, own, other = counts[b], (i - starts[b]) // size, (j - starts[b]) // size
        if causal:
            structure = other < ends or own - around < other <= own
            sees_all = own < ends
        else:
            sees_all = n <= 2 * ends + around + 2 * random_blocks or own < ends or own >= n - ends
            structure = other < ends or other >= n - ends or abs(own - other) <= around // 2
        if sees_all or tokens[b][i] or tokens[b][j]:
            return 1
        if first_block_again:
            hits = random_blocks if other == 0 else 0
        else:
            hits = draws[b % len(draws)][h % len(draws[0])][own].count(other)
        assert first_block_again or hits + structure <= 1, "random blocks are drawn once, and among the others"
        return int(structure) + hits

    return masked_attention(q, k, v, times, call)


def draw_options_bigbird(random: Random, length: int) -> dict[str, Any]:
    pattern = random.choice(("seeded", "hf_eval"))
    return {
        "block_size": random.randint(1, max(1, length // random.choice((2, 8, 12)))),
        "num_random_blocks": random.randint(0, 3),
        "num_window_blocks": random.choice((1, 3, 5)) if pattern == "seeded" else 3,
        "num_global_blocks": random.randint(0, 2) if pattern == "seeded" else 1,
        "seed": random.randint(0, 9),
        "random_pattern": pattern,
        "blocks_over": random.choice(("text", "text", "input")),
    }


def define_adaptive_span(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """A learned span per head: Sukhbaatar et al. 2019, Adaptive Attention Span in Transformers, equations 3 to 5.

    m_z(x) = min(max((R + z - x) / R, 0), 1), and a_tr = m_z(t - r) exp(s_tr) / sum_q m_z(t - q) exp(s_tq), over the
    past, or both ways by the distance. z is the learned number in [0, 1] times the longest span S.
    """
    ramp = module.options.ramp
    spans = dict(module.named_parameters())["span_fraction"].double() * module.options.max_span

    def output(head: Head, i: int, keys: list[int], scores: Tensor) -> Tensor:
        distance = torch.tensor([abs(i - j) for j in keys])
        weights = ((ramp + spans[head.h] - distance) / ramp).clamp(0, 1) * torch.exp(scores - scores.max())
        return weights / weights.sum() @ head.v[keys]

    return attend_to_seen(q, k, v, call, output)


def draw_options_adaptive_span(random: Random, length: int) -> dict[str, Any]:
    longest = random.randint(1, length + 5)
    return {
        "max_span": longest,
        "ramp": random.randint(1, 12),
        "init_span": random.choice((None, random.randint(0, longest))),
    }


def draw_parameters_adaptive_span(module: nn.Module) -> None:
    with torch.no_grad():
        dict(module.named_parameters())["span_fraction"].uniform_(0, 1)
