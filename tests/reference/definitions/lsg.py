"""Local, sparse and global keys under one softmax: Condevaux & Harispe 2022, LSG Attention, section 3, and the authors' converter.

Blocks of b tokens, the first of which begins ``block_offset`` tokens after the text does. A query of block c sees blocks c-1, c and c+1; on
each side beyond them the S sparse keys of the next S·f/b blocks; and the global tokens. A global query sees all tokens. Causal: nothing
after the query, so that sparse keys are those of the past.

A cell of n tokens gives n/f sparse keys (section 3.2), and global tokens are none of them:

    strided         head h takes the tokens h mod f, h mod f + f, … of the cell
    block_strided   head h takes n/f tokens in a row, from (h mod f)·n/f on
    max_norm        the tokens whose keys are the longest, of cells of min(b, S) tokens; of equal ones the earlier
    average_pooling the means of f tokens in a row, keys and values
    lsh             the means of clusters, of cells of min(b, S) tokens; one cluster has them all, and f = 1 leaves tokens as they are. A
                    round sends a key x to argmax [xR, -xR]; ``lsh_pre_rounds`` rounds have n clusters, and the next round sends the sums
                    of their keys; the last round has n/f clusters

To a score term a mean stands at the mean position of its tokens, rounded down. R is the module's draw of every round.
"""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._loops import first_tokens, real_positions, scores_of
from ._visible import near_blocks


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, global_mask: Tensor | None,
           scaling: float | None, score_mod: Any = None, seed: int = 0, **_: Any) -> Tensor:  # fmt: skip
    options = module.options
    size, factor = options.block_size, options.sparsity_factor
    sides = options.sparse_block_size * factor // size  # blocks with sparse keys on either side
    small = options.sparse_block_size  # which must hold whole sparse keys, and fill blocks
    cell = small if options.selection in ("max_norm", "lsh") and 0 < small < size and small % factor == size % small == 0 else size
    batch, heads, q_len, _ = q.shape
    group, length = heads // k.shape[1], k.shape[2]
    starts = first_tokens(padding_mask, batch, length)
    out = torch.zeros(q.shape, dtype=torch.float64)
    for b in range(batch):
        real = real_positions(padding_mask, b, length)
        if global_mask is None:
            tokens = {real[place] for place in options.global_tokens if place < len(real)}
        else:
            tokens = {j for j in real if global_mask[b, j]}
        first = starts[b] + options.block_offset
        for h in range(heads):
            keys, values = k[b, h // group], v[b, h // group]
            sparse: dict[int, list[list[int]]] = {}  # of every block, the tokens that each of its sparse keys stands for
            for number in range(-(size // cell), (length - first) // cell + 1) if sides else ():
                inside = range(first + number * cell, first + (number + 1) * cell)
                free = [j for j in inside if j in real and j not in tokens]
                found = sparse_keys(module, keys.detach(), inside, free, h, heads, seed)
                sparse.setdefault(number * cell // size, []).extend(found)
            for i in real:
                row = i - length + q_len
                if row < 0:
                    continue
                allowed = [j for j in real if j <= i or not causal]
                own = (i - first) // size
                if i in tokens:
                    met = [[j] for j in allowed]
                else:
                    met = [[j] for j in allowed if j in tokens or abs((j - first) // size - own) <= 1]
                    for block, pools in sparse.items():
                        if 2 <= abs(block - own) <= 1 + sides and (block < own or not causal):
                            met += pools
                if not met:
                    continue
                places = [sum(pool) // len(pool) for pool in met]
                mean = torch.zeros(len(met), length, dtype=torch.float64)
                for n, pool in enumerate(met):
                    mean[n, pool] = 1 / len(pool)
                scores = scores_of(q[b, h, row], mean @ keys, places, scaling=scaling, score_mod=score_mod, b=b, h=h, i=i)
                out[b, h, row] = torch.softmax(scores, 0) @ (mean @ values)
    return out


def sparse_keys(module: nn.Module, keys: Tensor, inside: range, free: list[int], h: int, heads: int, seed: int) -> list[list[int]]:
    """The tokens of every sparse key of one cell of head ``h``: one token, or those whose mean it is."""
    factor, selection = module.options.sparsity_factor, module.options.selection
    many = len(inside) // factor
    if selection == "strided":
        return [[j] for j in inside[h % factor :: factor] if j in free]
    if selection == "block_strided":
        return [[j] for j in inside[h % factor * many : (h % factor + 1) * many] if j in free]
    if selection == "max_norm":
        longest = sorted(free, key=lambda j: (-float(keys[j].norm()), j))[:many]
        return [[j] for j in longest]
    if selection == "average_pooling":
        runs = [[j for j in inside[n : n + factor] if j in free] for n in range(0, len(inside), factor)]
        return [run for run in runs if run]
    clusters = [[j] for j in free]
    if many == 1:
        return [free] if free else []
    if factor == 1:
        return clusters
    rounds = [len(inside)] * module.options.lsh_pre_rounds + [many]
    for direction in drawn_directions(module, heads, keys.shape[1], rounds, seed):
        joined: dict[int, list[int]] = {}
        for cluster in clusters:
            projected = keys[cluster].sum(0) @ direction[h]
            joined.setdefault(int(torch.cat([projected, -projected]).argmax()), []).extend(cluster)
        clusters = list(joined.values())
    return clusters


def drawn_directions(module: nn.Module, heads: int, width: int, rounds: list[int], seed: int) -> list[Tensor]:
    """The module's random directions of rounds with so many clusters, ``(H, D, clusters / 2)`` each."""
    from hf_longattn.mechanisms.lsg import directions

    return directions(module.options.seed + seed, heads, width, rounds, torch.device("cpu"))


def draw_options(random: Random, length: int) -> dict[str, Any]:
    factor, many = random.randint(1, 4), random.randint(1, 3)
    selection = random.choice(("strided", "block_strided", "max_norm", "average_pooling", "lsh"))
    many += many % 2 if selection == "lsh" and many > 1 else 0
    return {
        "block_size": factor * many,
        "sparse_block_size": many * random.randint(0, 4),
        "sparsity_factor": factor,
        "selection": selection,
        "global_tokens": tuple(sorted(random.sample(range(length), random.randint(0, min(2, length))))),
        "seed": random.randint(0, 9),
        "lsh_pre_rounds": random.randint(0, 2),
        "block_offset": random.choice((0, 0, random.randrange(factor * many))),
    }


def always_visible(o: Any, h: Tensor, i: Tensor, j: Tensor, causal: bool) -> Tensor:
    tokens = torch.tensor([position in o.global_tokens for position in range(j.shape[-1])])
    shift = (o.block_size - o.block_offset) % o.block_size  # tokens before the first whole block are one themselves
    return near_blocks(o.block_size, i + shift, j + shift, before=1, after=1) | tokens[i] | tokens[j]
