"""The loop that all softmax mechanisms have in common: for every query, one softmax over the keys that it sees."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._rows import heads, together

Sees = Callable[[int, int, int, int], "bool | int"]
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def is_real(padding_mask: Tensor | None, b: int, i: int) -> bool:
    """Whether position ``i`` of sequence ``b`` is a token and no padding."""
    return padding_mask is None or bool(padding_mask[b, i])


def real_positions(padding_mask: Tensor | None, b: int, length: int) -> list[int]:
    """The positions of sequence ``b`` that are tokens."""
    return [i for i in range(length) if is_real(padding_mask, b, i)]


def first_tokens(padding_mask: Tensor | None, batch: int, length: int) -> list[int]:
    """The position of every sequence's first token, from which blocks, columns and sinks are counted."""
    return [next(iter(real_positions(padding_mask, b, length)), 0) for b in range(batch)]


def scores_of(
    q: Tensor, keys: Tensor, positions: list[int], *, scaling: float | None, score_mod: ScoreMod | None, b: int, h: int, i: int
) -> Tensor:
    """Scores of one query ``q (D,)`` at position ``i`` against ``keys (n, D)`` that stand at ``positions``, ``(n,)``."""
    scores = (keys @ q) * (q.shape[0] ** -0.5 if scaling is None else scaling)
    if score_mod is None:
        return scores
    return score_mod(scores, torch.tensor(b), torch.tensor(h), torch.tensor(i), torch.tensor(positions))


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, sees: Sees, *, causal: bool, padding_mask: Tensor | None, scaling: float | None,
    score_mod: ScoreMod | None,
) -> Tensor:  # fmt: skip
    """softmax(Q Kᵀ · scale) V over the keys for which ``sees(b, h, i, j)``; a number n counts the key n times (weight n · exp(score)).

    Padding is never seen, and in the causal form no key after the query.
    """
    outputs = []
    for head in heads(q, k, v, padding_mask):
        rows = []
        for row, i in enumerate(head.queries):
            allowed = head.seen(i, causal) if i in head.real else []
            counted = [(j, int(sees(head.b, head.h, i, j))) for j in allowed]
            keys = [j for j, times in counted if times]
            if not keys:
                rows.append(torch.zeros(q.shape[-1], dtype=torch.float64))
                continue
            scores = scores_of(head.q[row], head.k[keys], keys, scaling=scaling, score_mod=score_mod, b=head.b, h=head.h, i=i)
            times = torch.tensor([float(times) for _, times in counted if times], dtype=torch.float64)
            weights = times * torch.exp(scores - scores.max())
            rows.append(weights / weights.sum() @ head.v[keys])
        outputs.append(rows)
    return together(outputs, q)
