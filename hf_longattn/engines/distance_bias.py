"""A score term that depends on the distance between query and key alone, and on the head: one table says it for every engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from .pattern import ScoreMod


@dataclasses.dataclass(frozen=True)
class DistanceBias:
    """``score_mod`` that adds ``table[h, (q_idx - kv_idx) + ahead]``.

    Engines that know it lay the table over their blocks; for the others it is a ``score_mod`` like any.

    table: ``(H, back + ahead + 1)`` for the distances ``-ahead … back``; distances beyond take the value at the end.
    """

    table: Tensor
    ahead: int

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return score + self.table[h, (q_idx - kv_idx + self.ahead).clamp(0, self.table.shape[1] - 1)]

    def of_heads(self, heads: Sequence[int]) -> DistanceBias:
        """The same for some heads, counted from 0."""
        return DistanceBias(self.table[list(heads)], self.ahead)

    def over(self, distance: Tensor) -> Tensor:
        """``(H, rows, columns)`` for distances ``(rows, columns)``."""
        return self.table[:, (distance + self.ahead).clamp(0, self.table.shape[1] - 1)]

    def add_gradient(self, total: Tensor, distance: Tensor, of_scores: Tensor) -> None:
        """Add to ``total``, shaped as the table, the gradient of scores ``(H, rows, columns)`` at these distances."""
        index = (distance + self.ahead).clamp(0, self.table.shape[1] - 1)
        total.index_add_(1, index.flatten(), of_scores.flatten(1).to(total.dtype))


def mod_of_heads(score_mod: ScoreMod | None, heads: Sequence[int]) -> ScoreMod | None:
    """``score_mod`` for a group of heads that counts them from 0."""
    if score_mod is None or isinstance(score_mod, DistanceBias):
        return None if score_mod is None else score_mod.of_heads(heads)
    numbers = torch.tensor(heads)
    return lambda score, b, h, q_idx, kv_idx: score_mod(score, b, numbers.to(h.device)[h], q_idx, kv_idx)


def score_gradient(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grad: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Gradient of the scores of ``softmax(q·k·scale + mask)·v``, summed over the first axis: ``(H, rows, columns)``.

    q, out, grad ``(n, H, rows, D)``, k, v ``(n, H, columns, D)``, lse ``(n, H, rows)``: of the whole softmax, of which this may be a part.
    """
    dtype = lse.dtype
    q, k, v, out, grad = (x.to(dtype) for x in (q, k, v, out, grad))
    scores = (q @ k.transpose(-1, -2)).mul_(scale)
    if mask is not None:
        scores = scores.add_(mask)
    weights = scores.sub_(lse[..., None]).exp_()
    of_weights = (grad @ v.transpose(-1, -2)).sub_((grad * out).sum(-1, keepdim=True))
    return weights.mul_(of_weights).sum(0)
