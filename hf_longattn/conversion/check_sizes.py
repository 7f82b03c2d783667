"""Compare source and result at an old and a new size. Both models are loaded, in fp32."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..evaluation.flops import layer_mechanisms
from ..inputs.running import run_model
from ..inputs.sizes import InputSize
from ..modeling.family.grid_config import TILE
from ..modeling.grids import interpolating
from ..reports import SKIPPED, Check, Difference, equality
from .check import BASE, Comparison, attending, check_finite
from .plan import ConversionPlan

FLOPS_AT_NEW_SIZE = 4e12
"""Maximum FLOPs of the checks at the new size: about a minute on two cores."""
STATES = "last_hidden_state"


def affordable_size(plan: ConversionPlan) -> InputSize:
    """The size for checks: the new size, or the largest of its steps from the old one whose forward passes take few FLOPs."""
    sizes = plan.inputs.steps()
    few = [2 * (cost.full_attention_flops + cost.other_flops + cost.total_flops) <= FLOPS_AT_NEW_SIZE for cost in plan.costs]
    return next((size for size, is_cheap in zip(reversed(sizes), reversed(few), strict=True) if is_cheap), sizes[0])


def check_sizes(
    comparison: Comparison, reads_new: bool, resizing: Mapping[str, Any] | None = None, how: str = ""
) -> tuple[list[Check], dict[str, Tensor], InputSize]:
    """Compare outputs at the old size, and hidden states at the new one. Rounds the source in place if the plan casts.

    Args:
        reads_new: whether the source reads the new size.
        resizing, how: arguments with which the source does, and in words.

    Returns:
        The checks, the result's hidden states at the new size, and this size, which is smaller for a large model.
    """
    plan, inputs, base, long = comparison.plan, comparison.inputs, comparison.base, comparison.long
    plan.round_source(comparison.source)
    sizes, words = plan.inputs, plan.inputs.words
    old, new = sizes.old, affordable_size(plan)
    compared, measured = comparison.compared
    what = f"{comparison.outputs} at {old.describe()}"
    uncovered = f"the mechanism does not cover the {words.noun}"

    def compare(name: str, size: InputSize, detail: str, expected: Any, outputs: Any, why: str = "") -> Check:
        values = {**size.values, "outputs": sorted(expected)}
        return equality(name, f"{detail}: largest difference from the source", Difference.of(expected, outputs), values, why)

    def covers(size: InputSize) -> bool:
        return all(layer.covers(size.tokens) for layer in size.bound(layer_mechanisms(plan.attention, plan.shape, size.tokens)))

    at_old, at_new = inputs.at(old), inputs.at(new)
    expected, outputs, states = run_model(compared, at_old), run_model(measured, at_old), _states(run_model(long, at_new))
    if covers(old):
        checks = [compare("equal where the mechanism covers the input", old, f"{what}, long attention", expected, outputs)]
    else:
        with attending(comparison.result, BASE):
            full = run_model(measured, at_old)
        checks = [
            compare(
                f"equal at the old {words.size} with full attention",
                old,
                f"{what}, full attention instead of the mechanism",
                expected,
                full,
            ),
            compare(f"at the old {words.size}", old, f"{what}, long attention", expected, outputs, uncovered),
        ]
    name = f"equal at the new {words.size} with full attention"
    if new != old and not reads_new:
        checks.append(Check(name, SKIPPED, f"does not apply: the source does not read {new.words}"))
    elif new != old:
        shorter = "" if new == sizes.new else f" (of {sizes.new.words}: a large model)"
        where = f"hidden states at {new.describe()}{shorter}"
        expected = _states(run_model(base, {**at_new, **(resizing or {})}))
        tiled = plan.positions == TILE
        with attending(comparison.result, BASE), interpolating(comparison.result) if tiled else contextlib.nullcontext():
            full = _states(run_model(long, at_new))
        whys = [uncovered] * (tiled or not covers(new)) + [f"positions are {plan.positions}d"] * tiled
        interpolated = f" and interpolated positions, the source with {how}" if how else ""
        detail = f"{where}, long attention, the source with full attention{f' and {how}' if how else ''}"
        checks += [
            compare(name, new, f"{where}, full attention{interpolated}", expected, full),
            compare(f"at the new {words.size}", new, detail, expected, states, " and ".join(whys)),
        ]
    finite = check_finite(f"finite at the new {words.size}", f"hidden states at {new.describe()}", states, new.values)
    return [*checks, finite], states, new


def _states(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The last hidden states if ``outputs`` has them, without a pooled state that is computed from them; otherwise all outputs."""
    return {STATES: outputs[STATES]} if STATES in outputs else dict(outputs)
