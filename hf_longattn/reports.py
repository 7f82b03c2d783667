"""Parts of reports: differences between outputs, checks of a result, and Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, without a newline at its end."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows) if cells)


TOLERANCE, ROUNDINGS = 1e-4, 8
"""Largest relative difference that counts as equal: in fp32, and in units of rounding for models that are too large
for fp32."""
MASKED = 1e4
"""Values of this magnitude or more are compared relative to themselves. Logits masked with -1e6 would otherwise set
the scale of all."""
BLOCK = 2**24
"""Values that are compared at once, so that the logits of a large vocabulary take little more memory."""


@dataclass(frozen=True)
class Difference:
    """The largest difference between outputs of two models, and the output that has it.

    largest: absolute difference.
    scale: largest magnitude of that output of the source, in values below :data:`MASKED`.
    relative: difference relative to the scale; infinite for NaN, for another shape, and where the source has zeros
        only.
    output: name of that output; empty if nothing was compared.
    tolerance: the largest relative difference that counts as equal.
    """

    largest: float = math.inf
    scale: float = 0.0
    relative: float = math.inf
    output: str = ""
    tolerance: float = TOLERANCE

    @classmethod
    def of(cls, expected: Mapping[str, Tensor], measured: Mapping[str, Tensor]) -> Difference:
        """The relatively largest difference between outputs of source and result.

        An output that the result lacks counts as different, and so do empty comparisons.
        """
        import torch

        differences = list[Difference]()
        for name, values in expected.items():
            if not values.numel():
                continue
            blocks, other = values.detach().reshape(-1).split(BLOCK), measured.get(name)
            magnitudes = (block.float().abs() for block in blocks)
            scale = max(float(size.masked_fill(size >= MASKED, 0.0).max()) for size in magnitudes)
            largest = relative = math.inf
            if other is not None and other.shape == values.shape:
                largest = relative = 0.0
                for before, after in zip(blocks, other.detach().reshape(-1).split(BLOCK), strict=True):
                    differs = before.float() != after.float()  # infinite values may be equal
                    if bool(differs.any()):
                        size = before.float()[differs].abs()
                        difference = (before.float() - after.float())[differs].abs()
                        ratio = difference / size.where(size >= MASKED, scale)
                        largest = max(largest, float(difference.nan_to_num(math.inf, math.inf).max()))
                        relative = max(relative, float(ratio.nan_to_num(math.inf, math.inf).max()))
            rounding = torch.finfo(values.dtype).eps if values.is_floating_point() else 0.0
            differences.append(cls(largest, scale, relative, name, max(TOLERANCE, ROUNDINGS * rounding)))
        return max(differences, key=lambda difference: (difference.relative, difference.scale), default=cls())

    @property
    def equal(self) -> bool:
        return self.relative <= self.tolerance

    @property
    def values(self) -> dict[str, Any]:
        """The numbers for a report, JSON-serialisable."""
        return {
            "max_abs_difference": self.largest,
            "scale": self.scale,
            "relative_difference": self.relative,
            "tolerance": self.tolerance,
        }

    def __str__(self) -> str:
        """For example "3.1e-06 of the largest value 0.028 (logits)"."""
        return f"{self.relative:.1e} of the largest value {self.scale:.2g} ({self.output or 'no output'})"


PASSED, FAILED, NEEDS_TRAINING, MEASURED, SKIPPED = "passed", "failed", "needs training", "measured", "skipped"


@dataclass(frozen=True)
class Check:
    """One check of the result."""

    name: str
    status: str  # "passed", "failed", "needs training", "measured" or "skipped"
    detail: str  # one sentence with the numbers
    values: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"name": self.name, "status": self.status, "detail": self.detail}
        if self.values:
            facts["values"] = self.values
        return facts


def equality(name: str, comparison: str, difference: Difference, values: dict[str, Any], why: str = "") -> Check:
    """A check of outputs that should be equal.

    Args:
        name, comparison: name of the check, and description of the comparison.
        difference: difference of the outputs.
        values: values for the report.
        why: reason why outputs may differ; the result then needs training unless another check decides otherwise.
            Empty: must be equal.
    """
    values, detail = {**values, **difference.values}, f"{comparison} {difference}"
    if difference.output and not difference.scale and not difference.largest:
        return Check(name, SKIPPED, f"{comparison} is that of zeros, since the source's outputs are all zero", values)
    if why and math.isfinite(difference.largest):
        status = MEASURED if difference.equal else NEEDS_TRAINING
        return Check(name, status, f"{detail}: not exact, since {why}", values)
    if difference.equal:
        return Check(name, PASSED, f"{detail}, equal", values)
    must_be = "finite" if why else "equal"
    return Check(name, FAILED, f"{detail}, but they must be {must_be}", values)
