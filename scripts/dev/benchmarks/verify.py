"""Verification: every implementation's output and gradients against the float64 definition."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from .case import AttentionInputs
from .definition import DENSE_LENGTH, define, mask_of
from .implementations import Implementation

ALL_HEADS_LENGTH = 1024
"""Up to here every head is checked; above, the first and the last (each over all rows)."""
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-2}
GRADIENT_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 5e-2}


@dataclasses.dataclass(frozen=True)
class Check:
    """The largest absolute difference found, relative to the larger of 1 and the largest expected value."""

    implementation: str
    length: int
    what: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


def difference(measured: Tensor, expected: Tensor) -> float:
    """max |found − expected| / max(1, max |expected|); infinite when something is not finite."""
    error = (measured.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1.0)
    return float(error) if bool(torch.isfinite(error)) else float("inf")


def verify_attention(inputs: AttentionInputs, candidates: Sequence[Implementation]) -> list[Check]:
    """Compare all implementations with the definition; if that is too large to compute, at the longest length at which it is not."""
    case = inputs.case
    if case.length > DENSE_LENGTH and mask_of(inputs) is None:
        axes = len(case.grid)
        sides = (int(DENSE_LENGTH ** (1 / axes) + 1e-9),) * axes if case.grid else ()
        inputs = AttentionInputs(case.on_grid(sides) if case.grid else case.at(length=DENSE_LENGTH))
        return verify_attention(inputs, [type(candidate)(inputs) for candidate in candidates])  # type: ignore[call-arg]
    heads = list(range(case.heads)) if case.length <= ALL_HEADS_LENGTH else sorted({0, case.heads - 1})
    definitions = {
        computes: define(inputs, computes, heads) for computes in {candidate.computes for candidate in candidates if candidate.computes}
    }
    checks = []
    for candidate in candidates:
        expected = definitions.get(candidate.computes)
        if expected is None:
            continue
        output = candidate.run(case.backward)
        checks.append(Check(candidate.name, case.length, "output", difference(output[:, heads], expected[0]), TOLERANCE[case.dtype]))
        if not case.backward:
            continue
        tolerance = GRADIENT_TOLERANCE[case.dtype]
        errors = [difference(grad[:, heads], wanted) for grad, wanted in zip(candidate.gradients, expected[1:], strict=True)]
        checks.append(Check(candidate.name, case.length, "gradients of q, k, v", max(errors), tolerance))
    return checks
