"""Native sparse attention: Yuan et al. 2025, section 3.3: compressed blocks (equation 7), blocks that the weights of the compressed branch
select (equations 8 to 12) and a window, each under a sigmoid gate (equation 5).

φ is the mean of a block's tokens plus a two-layer perceptron of the tokens with positions inside the block. Blocks are counted from 0. The
bidirectional form sees all compressed blocks, and its local blocks and its window lie on both sides.
"""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._loops import scores_of
from ._rows import heads, together
from ._visible import near_blocks


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, scaling: float | None,
           score_mod: Any = None, **_: Any) -> Tensor:  # fmt: skip
    o, every = module.options, list(heads(q, k, v, padding_mask))
    group = q.shape[1] // k.shape[1]

    def scores(head: Any, row: int, keys: Tensor, places: list[int]) -> Tensor:
        return scores_of(
            head.q[row], keys, places, scaling=scaling, score_mod=score_mod, b=head.b, h=head.h, i=head.queries[row]
        )  # fmt: skip

    compressed = []  # of every head: (block, its real tokens, key, value)
    for head in every:
        found = []
        for m in range(-(-head.length // o.compress_stride)):
            first = head.first + m * o.compress_stride
            tokens = [j for j in range(first, first + o.compress_size) if j in head.real]
            if tokens:
                inside = [j - first for j in tokens]
                found.append((m, tokens, phi(module.keys, head.k[tokens], inside), phi(module.values, head.v[tokens], inside)))
        compressed.append(found)

    def weights(number: int, row: int) -> dict[int, Tensor]:
        """Of the compressed branch: block -> weight."""
        head, i = every[number], every[number].queries[row]
        ended = [
            (m, tokens, key) for m, tokens, key, _ in compressed[number]
            if not causal or head.first + m * o.compress_stride + o.compress_size - 1 <= i
        ]  # fmt: skip
        if not ended:
            return {}
        keys, middles = torch.stack([key for *_, key in ended]), [sum(tokens) // len(tokens) for _, tokens, _ in ended]
        return dict(zip([m for m, *_ in ended], torch.softmax(scores(head, row, keys, middles), 0), strict=True))

    outputs = []
    for number, head in enumerate(every):
        rows = []
        for row, i in enumerate(head.queries):
            if i not in head.real:
                rows.append(torch.zeros(q.shape[-1], dtype=torch.float64))
                continue
            own_weights = weights(number, row)
            values = {m: value for m, _, _, value in compressed[number]}
            first = sum((weight * values[m] for m, weight in own_weights.items()), torch.zeros(q.shape[-1], dtype=torch.float64))

            sharing = range(number - head.h % group, number - head.h % group + group)
            of_group = [weights(other, row) for other in sharing]
            chosen = select(o, causal, (i - head.first) // o.block_size, {(j - head.first) // o.block_size for j in head.real}, of_group)
            seen = head.seen(i, causal)
            near = [j for j in seen if (i - j < o.window if causal else abs(i - j) <= o.window // 2)]
            picked = [j for j in seen if (j - head.first) // o.block_size in chosen]
            branches = [first]
            for tokens in (picked, near):
                branches.append(torch.softmax(scores(head, row, head.k[tokens], tokens), 0) @ head.v[tokens])
            gates = torch.sigmoid(head.q[row] @ module.gate[head.h] + module.gate_bias[head.h])
            rows.append(sum(gate * branch for gate, branch in zip(gates, branches, strict=True)))
        outputs.append(rows)
    return together(outputs, q)


NOTHING = torch.tensor(0.0)


def phi(network: nn.Module, tokens: Tensor, inside: list[int]) -> Tensor:
    """One vector of a block's real ``tokens``, which are at the places ``inside`` it."""
    hidden = network.first_bias + sum((token + network.positions[r]) @ network.first[r] for token, r in zip(tokens, inside, strict=True))
    return tokens.mean(0) + torch.relu(hidden) @ network.second + network.second_bias


def select(o: Any, causal: bool, own: int, filled: set[int], of_group: list[dict[int, Tensor]]) -> set[int]:
    """The blocks of a query in block ``own``, ``num_blocks`` in all: initial, local, and those of the highest scores."""
    steps, overlap = o.block_size // o.compress_stride, o.compress_size // o.compress_stride
    others = [j for j in filled if j < own or (j > own and not causal)]
    inside = [m - n for m in range(steps) for n in range(overlap)]
    score = {j: sum(float(p.get(steps * j + at, NOTHING).detach()) for p in of_group for at in inside) for j in others}
    always = [j for j in others if j < o.initial_blocks or (own - j < o.local_blocks if causal else abs(own - j) <= o.local_blocks // 2)]
    free = sorted((j for j in others if j not in always), key=lambda j: (-score[j], j))
    return {own, *[*sorted(always), *free][: o.num_blocks - 1]}


def draw_options(random: Random, length: int) -> dict[str, Any]:
    stride, initial, local = random.randint(1, 5), random.randint(0, 2), random.randint(1, 4)
    return {
        "compress_stride": stride,
        "compress_size": stride * random.randint(1, 3),
        "block_size": stride * random.randint(1, 4),
        "initial_blocks": initial,
        "local_blocks": local,
        "num_blocks": initial + local + random.randint(0, 3),
        "window": 2 * random.randint(1, max(1, length // 2)),
        "hidden": random.choice((None, 1, 3)),
    }


def always_visible(o: Any, h: Tensor, i: Tensor, j: Tensor, causal: bool) -> Tensor:
    sides = (o.local_blocks - 1, 0) if causal else (o.local_blocks // 2,) * 2
    return near_blocks(o.block_size, i, j, before=sides[0], after=sides[1]) | (j // o.block_size < o.initial_blocks)
