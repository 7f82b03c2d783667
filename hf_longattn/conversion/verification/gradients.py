"""One training step of an adopted checkpoint beside transformers' own model of its source: the same gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..adopters import Adopter, Probe
from ..planning.plan import ConversionPlan
from ..report import FAILED, PASSED, SKIPPED, Check
from ..running.memory import available_memory

__all__ = ["GRADIENT_LENGTH", "check_gradients", "gradients", "skipped", "why_no_gradients"]

GRADIENT_LENGTH = 192
"""Tokens of the step: enough for windows, padding and global tokens to matter, quick for a large model."""
TOLERANCE = 1e-4
"""Largest difference called equal, relative to the largest gradient of the model."""
NAME = "one step's gradients equal to the source's"


def why_no_gradients(plan: ConversionPlan) -> str | None:
    """Why the gradients of the two models cannot be compared; ``None`` when they can."""
    if plan.attention != plan.architecture.adopted_attention() or not plan.positions_exact:
        return "the result is not meant to equal the source"
    needed, available = 4 * plan.parameters * 3.5, available_memory()
    if needed > available:
        return f"a model and the gradients of two take {needed / 1e9:.1f} GB in fp32 and {available / 1e9:.1f} GB are free"
    return None


def gradients(model: Any, inputs: dict[str, Tensor], probe: Probe) -> dict[str, Tensor]:
    """Gradients of every parameter by name, for the mean sine of all outputs at real tokens: no label is needed, all outputs take part."""
    returned = model(**inputs, return_dict=True)
    terms = []
    for name, value in returned.items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad:
            terms.append(probe.rows(name, value).float().sin().mean())
    model.zero_grad(set_to_none=True)
    torch.stack(terms).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def check_gradients(plan: ConversionPlan, adopter: Adopter, wanted: dict[str, Tensor], found: dict[str, Tensor]) -> Check:
    """Compare the source's gradients, moved as its tensors were, with those of the result.

    Rows that a position table has gained, and parameters that only the result has, are compared with zero.
    """
    expected: dict[str, Tensor] = {}
    for name, gradient in wanted.items():
        move = adopter.move(name, plan.architecture.adopted_config)
        if move.target is not None:
            expected[move.target] = gradient if move.change is None else move.change(gradient)
    scale = max((float(gradient.abs().max()) for gradient in expected.values()), default=0.0)
    worst, where = 0.0, "none"
    for name in sorted(expected.keys() | found.keys()):
        difference = _difference(expected.get(name), found.get(name))
        if not difference <= worst:  # also when it is not a number
            worst, where = difference, name
    values = {"length": GRADIENT_LENGTH, "compared": len(expected), "max_abs_difference": worst, "largest_gradient": scale}
    detail = (
        f"gradients of {len(expected)} parameters after one step at {GRADIENT_LENGTH} tokens or fewer: largest difference {worst:.1e} "
        f"({where}) beside a largest gradient of {scale:.1e}"
    )
    good = scale > 0 and worst <= TOLERANCE * scale
    return Check(NAME, PASSED if good else FAILED, f"{detail}, {'equal' if good else 'but they must be equal'}", values)


def skipped(why: str) -> Check:
    """The check that was not made."""
    return Check(NAME, SKIPPED, why)


def _difference(a: Tensor | None, b: Tensor | None) -> float:
    if a is None or b is None:
        one = b if a is None else a
        return 0.0 if one is None else float(one.abs().max())
    if a.shape != b.shape and a.shape[1:] == b.shape[1:]:  # a table that was extended
        rows = min(len(a), len(b))
        return max(float((a[:rows] - b[:rows]).abs().max()), *(float(x[rows:].abs().max()) for x in (a, b) if len(x) > rows))
    return float((a - b).abs().max())
