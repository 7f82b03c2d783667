"""How far a model's predictions are from another's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS = 256
"""Rows of logits that are compared at a time."""


def kl_divergence(own: Tensor, theirs: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher ‖ student) of logits ``(n, classes)``, mean over n, times the temperature's square, so that gradients do not depend on it.

    It is the cross-entropy of the student's predictions with the teacher's (Hinton et al. 2015) less the teacher's entropy: 0 where both
    predict the same, with the same gradients; ``theirs`` gets none. Computed in float32, :data:`ROWS` rows at a time: the only tensor of
    this size that is kept is the gradient.
    """
    return _KLDivergence.apply(own, theirs.detach(), temperature)


class _KLDivergence(torch.autograd.Function):
    """d/d own_i = (softmax(own / t) - softmax(theirs / t))_i · t / n."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, theirs: Tensor, temperature: float) -> Tensor:
        gradient, total = torch.empty_like(own), own.new_zeros((), dtype=torch.float32)
        for at in range(0, len(own), ROWS):
            rows = slice(at, at + ROWS)
            predicted, wanted = ((logits[rows].float() / temperature).log_softmax(-1) for logits in (own, theirs))
            probability = wanted.exp()
            total += (probability * wanted.sub_(predicted)).sum()
            gradient[rows] = predicted.exp_().sub_(probability)
        ctx.save_for_backward(gradient)
        ctx.factor = temperature / max(1, len(own))
        return total * (ctx.factor * temperature)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (gradients[0] * ctx.factor).to(gradient.dtype), None, None
