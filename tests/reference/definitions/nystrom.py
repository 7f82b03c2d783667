"""Nyströmformer: Xiong et al. 2021, A Nyström-Based Algorithm for Approximating Self-Attention, equations 13 to 15."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ._rows import heads, together
from .linformer import runs


def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, scaling: float | None,
           **_: Any) -> Tensor:  # fmt: skip
    """softmax(q K̃ᵀ) Z softmax(Q̃ Kᵀ) V, Q̃ and K̃ the means of segments and Z the iterated pseudo-inverse of softmax(Q̃ K̃ᵀ).

    Z_0 is Aᵀ / (|A|_1 |A|_∞), where |A|_∞ = 1; the authors' first code takes the largest |A|_1 of the batch. A text of no more tokens than
    landmarks, each of which is one then, has softmax attention. The convolution of the values, a kernel for each head, is added.
    """
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


def draw_options(random: Random, length: int) -> dict[str, Any]:
    return {
        "num_landmarks": random.randint(1, length + 2),
        "iterations": random.randint(1, 8),
        "conv_kernel": random.choice((None, 1, 3, 9)),
        "inv_coeff_init_option": random.choice(("exact", "original")),
    }
