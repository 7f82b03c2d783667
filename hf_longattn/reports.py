"""What reports consist of: differences between outputs, checks of a result, and Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, without a newline at its end. Empty rows are left out."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows) if cells)


TOLERANCE = 1e-4
"""Maximum relative difference of outputs that count as equal."""
ROUNDINGS = 8
"""Maximum relative difference of equal outputs in bf16 or fp16, in units of the dtype's machine epsilon. Models that
are too large for fp32 are compared in these dtypes."""
MASKED = 1e4
"""Values of this magnitude or more are compared relative to themselves. Otherwise, logits masked with -1e6 would set
the scale for all values."""
BLOCK = 2**24
"""Number of values that are compared at once. It limits the memory for comparing the logits of a large vocabulary."""


@dataclass(frozen=True)
class Difference:
    """The difference between two models in one output, usually the output with the largest relative difference.

    Attributes:
        largest: the largest absolute difference.
        scale: the largest magnitude in the source's output, among values below :data:`MASKED`.
        relative: the largest difference relative to the scale. It is infinite for NaN, for different shapes, and for
            differences from an output of zeros.
        output: name of the output; empty if nothing was compared.
        tolerance: the maximum of ``relative`` at which the outputs count as equal.
    """

    largest: float = math.inf
    scale: float = 0.0
    relative: float = math.inf
    output: str = ""
    tolerance: float = TOLERANCE

    @classmethod
    def of(cls, expected: Mapping[str, Tensor], measured: Mapping[str, Tensor]) -> Difference:
        """Compare each output of the source with the result's output of the same name.

        Args:
            expected: name -> output of the source.
            measured: name -> output of the result. An output that is missing here counts as infinitely different.
        Returns:
            The difference in the output with the largest relative difference. It is infinite if nothing was compared.
        """
        import torch

        differences = list[Difference]()
        for name, values in expected.items():
            if not values.numel():
                continue
            other = measured.get(name)
            blocks = values.detach().reshape(-1).split(BLOCK)
            magnitudes = (block.float().abs() for block in blocks)
            scale = max(float(size.masked_fill(size >= MASKED, 0.0).max()) for size in magnitudes)
            largest = relative = math.inf
            if other is not None and other.shape == values.shape:
                largest = relative = 0.0
                for before, after in zip(blocks, other.detach().reshape(-1).split(BLOCK), strict=True):
                    # equal infinite values have no difference; inf - inf would be NaN
                    differs = before.float() != after.float()
                    if bool(differs.any()):
                        size = before.float()[differs].abs()
                        difference = (before.float() - after.float())[differs].abs()
                        ratio = difference / size.where(size >= MASKED, scale)
                        # NaN counts as an infinite difference
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
    """One check of a converted or exported model, for its report."""

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
        name: name of the check.
        comparison: what was compared, as the start of a sentence that ends with the difference.
        difference: the difference of the outputs.
        values: further values for the report.
        why: the reason why the outputs may differ, as a clause. If they differ, the status is "needs training". If
            this is empty, the outputs must be equal, and the check fails otherwise.
    """
    values = {**values, **difference.values}
    detail = f"{comparison} {difference}"
    if difference.output and not difference.scale and not difference.largest:
        return Check(name, SKIPPED, f"{comparison} is that of zeros, since the source's outputs are all zero", values)
    if why and math.isfinite(difference.largest):
        status = MEASURED if difference.equal else NEEDS_TRAINING
        return Check(name, status, f"{detail}: not exact, since {why}", values)
    if difference.equal:
        return Check(name, PASSED, f"{detail}, equal", values)
    must_be = "finite" if why else "equal"
    return Check(name, FAILED, f"{detail}, but they must be {must_be}", values)
