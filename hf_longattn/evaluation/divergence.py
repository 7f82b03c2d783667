"""How far a model's predictions are from another's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ROWS_AT_ONCE = 256
"""Rows of logits that are compared at a time, and again in the backward pass."""


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher ‖ student) of logits ``(n, classes)``, mean over n. It is multiplied by the squared temperature, so that gradients keep
    their scale.

    It is the cross-entropy of Hinton et al. (2015) minus the teacher's entropy: 0 for equal predictions, with the same gradients;
    ``teacher`` gets none. Computed in float32 over chunks of :data:`ROWS_AT_ONCE` rows.
    """

    def summed(student: Tensor, teacher: Tensor) -> Tensor:
        predicted, expected = ((logits.float() / temperature).log_softmax(-1) for logits in (student, teacher))
        return F.kl_div(predicted, expected, reduction="sum", log_target=True)

    chunks = zip(student.split(ROWS_AT_ONCE), teacher.detach().split(ROWS_AT_ONCE), strict=True)
    total = sum(checkpoint(summed, *rows, use_reentrant=False, preserve_rng_state=False) for rows in chunks)
    return total * (temperature**2 / max(1, len(student)))
