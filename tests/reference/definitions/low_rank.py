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
    matrix = dict(module.named_parameters())[f"{name}_projection"][0].double()
    places = [j - head.first for j in head.real]
    return torch.stack([matrix[places, row] @ x[head.real] for row in range(module.options.rank)])


def define_linformer(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Linformer: Wang et al. 2020, Self-Attention with Linear Complexity, equation 7, with headwise sharing (section
    4).

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


def define_synthesizer(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Synthesizer: Tay et al. 2020, Rethinking Self-Attention in Transformer Models, sections 3.1 and 3.2.1.

    o_i = Σ_j softmax_j(S_ij) v_j, with S_ij = (W_2 ReLU(W_1 q_i + b_1) + b_2)_j, or R_ij. Positions count from the
    first real token.
    """
    causal, padding_mask, score_mod = call.causal, call.padding_mask, call.score_mod
    parts = {name.split(".", 2)[-1]: value.double() for name, value in module.named_parameters()}
    outputs = []
    for head in heads(q, k, v, padding_mask):
        rows = []
        for i, index in enumerate(head.queries):
            seen = head.seen(index, causal)
            if index not in head.real:
                rows.append(head.v.new_zeros(head.v.shape[1]))
                continue
            keys = torch.tensor(seen) - head.first
            if module.options.variant == "dense":
                hidden = (head.q[i] @ parts["mlp.first"][head.h] + parts["mlp.first_bias"][head.h, 0]).relu()
                scores = (parts["mlp.second"][head.h] @ hidden + parts["mlp.second_bias"][head.h])[keys]
            else:
                scores = parts["matrix"][head.h, index - head.first, keys]
            if score_mod is not None:
                scores = score_mod(scores, *(torch.tensor(x) for x in (head.b, head.h, index, seen)))
            rows.append(scores.softmax(-1) @ head.v[seen])
        outputs.append(rows)
    return together(outputs, q)


def draw_options_synthesizer(random: Random, length: int) -> dict[str, Any]:
    return {
        "variant": random.choice(("dense", "random")),
        "longest_of_the_model": length + random.choice((0, 20)),
        "max_length": random.choice((None, None, length + random.randint(0, 20))),
    }
