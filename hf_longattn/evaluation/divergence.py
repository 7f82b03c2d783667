"""How far a model's predictions are from another's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS_AT_ONCE = 256
"""Rows of logits that are compared at a time."""


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher ‖ student) of logits ``(n, classes)``, mean over n. It is multiplied by the squared temperature, so that gradients keep
    their scale.

    It is the cross-entropy of Hinton et al. (2015) minus the teacher's entropy: 0 for equal predictions, with the same gradients;
    ``teacher`` gets none. Computed in float32 over chunks of :data:`ROWS_AT_ONCE` rows. Only the gradient is stored in full.
    """
    return _KLDivergence.apply(student, teacher.detach(), temperature)


class _KLDivergence(torch.autograd.Function):
    """d/d student_i = (softmax(student / t) - softmax(teacher / t))_i · t / n."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        gradient, total = torch.empty_like(student), student.new_zeros((), dtype=torch.float32)
        for at in range(0, len(student), ROWS_AT_ONCE):
            rows = slice(at, at + ROWS_AT_ONCE)
            predicted, expected = ((logits[rows].float() / temperature).log_softmax(-1) for logits in (student, teacher))
            probability = expected.exp()
            total += (probability * expected.sub_(predicted)).sum()
            gradient[rows] = predicted.exp_().sub_(probability)
        ctx.save_for_backward(gradient)
        ctx.factor = temperature / max(1, len(student))
        return total * (ctx.factor * temperature)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (gradients[0] * ctx.factor).to(gradient.dtype), None, None
