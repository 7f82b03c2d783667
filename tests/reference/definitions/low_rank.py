"""Weights of low rank, or without products: linformer, nystrom and synthesizer."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._loops import Call, Head, heads, together


def runs(length: int, pieces: int) -> list[range]:
    """``pieces`` runs of nearly equal length, the shorter ones first; each of one position where there are fewer."""
    pieces = min(length, pieces)
    short, longer = divmod(length, pieces)
    ends, start = [], 0
    for piece in range(pieces):
        stop = start + short + (piece >= pieces - longer)
        ends.append(range(start, stop))
        start = stop
    return ends


def projected(module: nn.Module, head: Head, x: Tensor, name: str) -> Tensor:
    """Eᵀ x (rows, D) for the tokens x of one head. Padding adds nothing; place 0 is the first real token."""
    options, learned = module.options, dict(module.named_parameters())
    if options.projection == "pooling":
        return torch.stack(
            [x[[head.real[place] for place in run]].mean(0) for run in runs(len(head.real), options.rank)]
        )
    matrix = learned.get(f"{name}_projection", learned["key_projection"]).double()
    matrix = matrix[head.h if len(matrix) > 1 else 0]
    if options.projection == "linear":
        places = [j - head.first for j in head.real]
        return torch.stack([matrix[places, row] @ x[head.real] for row in range(options.rank)])
    width, rows = len(matrix), []
    for start in range(head.first, head.first + head.length, width):
        members = [j for j in head.real if start <= j < start + width]
        if members:
            rows.append(sum((matrix[j - start] * x[j] for j in members), torch.zeros_like(x[0])))
    return torch.stack(rows)


def define_linformer(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Linformer: Wang et al. 2020, Self-Attention with Linear Complexity, equation 7; sharing and other projections
    are section 4.

    o = softmax(q (Eᵀ K)ᵀ · scale) (Fᵀ V).
    """
    causal, padding_mask, scaling = call.causal, call.padding_mask, call.scaling
    assert not causal
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    outputs = []
    for head in heads(q, k, v, padding_mask):
        keys, values = projected(module, head, head.k, "key"), projected(module, head, head.v, "value")
        outputs.append([(scale * keys @ head.q[i]).softmax(-1) @ values for i in range(len(head.queries))])
    return together(outputs, q)


def draw_options_linformer(random: Random, length: int) -> dict[str, Any]:
    longest = length + random.choice((0, 20))
    return {
        "longest_of_the_model": longest,
        "max_length": random.choice((None, None, longest + random.randint(0, 20))),
        "rank": random.randint(1, length),
        "projection": random.choice(("linear", "convolution", "pooling")),
        "sharing": random.choice(("none", "headwise", "key-value", "layerwise")),
    }


def define_nystrom(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Nyströmformer: Xiong et al. 2021, A Nyström-Based Algorithm for Approximating Self-Attention, equations 13 to
    15.

    softmax(q K̃ᵀ) Z softmax(Q̃ Kᵀ) V, Q̃ and K̃ the means of segments and Z the iterated pseudo-inverse of softmax(Q̃
    K̃ᵀ).

    Z_0 is Aᵀ / (|A|_1 |A|_∞), where |A|_∞ = 1; the authors' first code takes the largest |A|_1 of the batch. A text of
    no more tokens than landmarks, each of which is one then, has softmax attention. The convolution of the values, a
    kernel for each head, is added.
    """
    causal, padding_mask, scaling = call.causal, call.padding_mask, call.scaling
    assert not causal
    options = module.options
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    every, landmarks = list(heads(q, k, v, padding_mask)), []
    for head in every:
        segments = [[head.real[place] for place in run] for run in runs(len(head.real), options.num_landmarks)]
        landmarks.append(tuple(torch.stack([x[segment].mean(0) for segment in segments]) for x in (head.q, head.k)))
    middles = [(scale * queries @ keys.T).softmax(-1) for queries, keys in landmarks]
    one_norms = [middle.sum(0).max() for middle in middles]
    outputs = []
    for number, (head, (queries, keys), middle) in enumerate(zip(every, landmarks, middles, strict=True)):
        if len(head.real) <= options.num_landmarks:
            mixed = [(scale * head.k[head.real] @ row).softmax(-1) @ head.v[head.real] for row in head.q]
        else:
            one_norm = one_norms[number] if options.inv_coeff_init_option == "exact" else torch.stack(one_norms).max()
            inverse, unit = middle.T / one_norm, torch.eye(len(middle), dtype=torch.float64)
            for _step in range(options.iterations):
                product = middle @ inverse
                inverse = inverse @ (13 * unit - product @ (15 * unit - product @ (7 * unit - product))) / 4
            summaries = (scale * queries @ head.k[head.real].T).softmax(-1) @ head.v[head.real]
            mixed = [(scale * keys @ row).softmax(-1) @ inverse @ summaries for row in head.q]
        if options.conv_kernel is not None:
            kernel, half = dict(module.named_parameters())["conv"][head.h].double(), options.conv_kernel // 2
            for i in range(len(mixed)):
                near = [j for j in head.real if abs(j - i) <= half]
                mixed[i] = mixed[i] + sum((kernel[j - i + half] * head.v[j] for j in near), torch.zeros_like(mixed[i]))
        outputs.append(mixed)
    return together(outputs, q)


def draw_options_nystrom(random: Random, length: int) -> dict[str, Any]:
    return {
        "num_landmarks": random.randint(1, length + 2),
        "iterations": random.randint(1, 8),
        "conv_kernel": random.choice((None, 1, 3, 9)),
        "inv_coeff_init_option": random.choice(("exact", "original")),
    }


def mlp(parts: dict[str, Tensor], name: str, h: int, x: Tensor) -> Tensor:
    """W_2 ReLU(W_1 x + b_1) + b_2 of head h."""
    hidden = (x @ parts[f"{name}.first"][h] + parts[f"{name}.first_bias"][h, 0]).relu()
    return parts[f"{name}.second"][h] @ hidden + parts[f"{name}.second_bias"][h]


def scores(kind: str, parts: dict[str, Tensor], head: Head, i: int, seen: list[int], scale: float) -> Tensor:
    """S_ij of one kind for row i of q and the keys j at the indices ``seen``. Positions count from the first real
    token."""
    query, keys = head.queries[i] - head.first, torch.tensor(seen) - head.first
    name = f"kinds.{kind}"
    if kind == "dense":  # section 3.1
        return mlp(parts, f"{name}.mlp", head.h, head.q[i])[keys]
    if kind == "factorized_dense":  # section 3.2.2
        columns = parts[f"{name}.tiled.second"].shape[1]
        repeated, tiled = (mlp(parts, f"{name}.{which}", head.h, head.q[i]) for which in ("repeated", "tiled"))
        return repeated[keys // columns] * tiled[keys % columns]
    if kind == "random":  # section 3.2.1
        return parts[f"{name}.matrix"][head.h, query, keys]
    if kind == "factorized_random":  # section 3.2.3
        return parts[f"{name}.columns"][head.h, keys] @ parts[f"{name}.rows"][head.h, query]
    assert kind == "dot_product"
    return scale * head.k[seen] @ head.q[i]


def define_synthesizer(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Synthesizer: Tay et al. 2020, Rethinking Self-Attention in Transformer Models, section 3.

    o_i = Σ_j softmax_j(Σ_p α_p S_p(i, j)) v_j over the kinds p, with α = softmax of the learned mixing numbers
    (section 3.3).
    """
    causal, padding_mask, scaling, score_mod = call.causal, call.padding_mask, call.scaling, call.score_mod
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    parts = {name: value.double() for name, value in (*module.named_parameters(), *module.named_buffers())}
    kinds = module.options.variant
    alpha = parts["mixing"].softmax(-1) if len(kinds) > 1 else torch.ones(1, dtype=torch.float64)
    outputs = []
    for head in heads(q, k, v, padding_mask):
        rows = []
        for i, index in enumerate(head.queries):
            seen = head.seen(index, causal)
            if index not in head.real:
                rows.append(head.v.new_zeros(head.v.shape[1]))
                continue
            mixed = sum(alpha[p] * scores(kind, parts, head, i, seen, scale) for p, kind in enumerate(kinds))
            if score_mod is not None:
                mixed = score_mod(mixed, *(torch.tensor(x) for x in (head.b, head.h, index, seen)))
            rows.append(mixed.softmax(-1) @ head.v[seen])
        outputs.append(rows)
    return together(outputs, q)


def draw_options_synthesizer(random: Random, length: int) -> dict[str, Any]:
    kinds = ("dense", "factorized_dense", "random", "factorized_random", "dot_product")
    return {
        "variant": tuple(random.sample(kinds, random.randint(1, 3))),
        "longest_of_the_model": length + random.choice((0, 20)),
        "max_length": random.choice((None, None, length + random.randint(0, 20))),
        "hidden": random.choice((None, 1, 5)),
        "factor": random.choice((None, 1, 4)),
        "rank": random.choice((1, 3, 8)),
        "trainable": random.choice((True, False)),
    }
