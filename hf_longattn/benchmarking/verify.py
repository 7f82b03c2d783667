"""Equality before speed: every side's output, and its gradients, against the float64 definition."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from .case import AttentionInputs
from .definition import DENSE_LENGTH, define, mask_of
from .sides import Side

ALL_HEADS_LENGTH = 1024
"""Up to here every head is checked; above, the first and the last (each over all rows)."""
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-2}
GRADIENT_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 5e-2}


@dataclasses.dataclass(frozen=True)
class Check:
    """The largest absolute difference found, relative to the larger of 1 and the largest expected value."""

    side: str
    length: int
    what: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


def difference(found: Tensor, expected: Tensor) -> float:
    """max |found − expected| / max(1, max |expected|); infinite when something is not finite."""
    error = (found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1.0)
    return float(error) if bool(torch.isfinite(error)) else float("inf")


def verify_attention(inputs: AttentionInputs, sides: Sequence[Side]) -> list[Check]:
    """Compare all sides with the definition; where that is too large to write out, at the longest length at which it is not."""
    case = inputs.case
    if case.length > DENSE_LENGTH and mask_of(inputs) is None:
        inputs = AttentionInputs(case.at(length=DENSE_LENGTH))
        return verify_attention(inputs, [type(side)(inputs) for side in sides])  # type: ignore[call-arg]
    heads = list(range(case.heads)) if case.length <= ALL_HEADS_LENGTH else sorted({0, case.heads - 1})
    definitions = {computes: define(inputs, computes, heads) for computes in {side.computes for side in sides if side.computes}}
    projected: tuple[Tensor, ...] = ()
    checks = []
    for side in sides:
        expected = definitions.get(side.computes)
        if expected is None:
            continue
        found = side.run(case.backward)
        checks.append(Check(side.name, case.length, "output", difference(found[:, heads], expected[0]), TOLERANCE[case.dtype]))
        if not case.backward:
            continue
        tolerance = GRADIENT_TOLERANCE[case.dtype]
        if len(side.leaves) == 3:
            errors = [difference(grad[:, heads], wanted) for grad, wanted in zip(side.gradients, expected[1:], strict=True)]
            checks.append(Check(side.name, case.length, "gradients of q, k, v", max(errors), tolerance))
        else:  # from hidden states: compared among the sides that start there
            projected = projected or side.gradients
            errors = [difference(grad, wanted) for grad, wanted in zip(side.gradients, projected, strict=True)]
            checks.append(Check(side.name, case.length, "gradient of the hidden states", max(errors), tolerance))
    return checks
