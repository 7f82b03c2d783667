"""Run a long model with full attention beside the plain one made from it, on the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..report import FAILED, MEASURED, PASSED, TOLERANCE, Check
from ..running.calling import outputs
from ..running.loading import load_result, load_source, newly_initialised
from ..running.memory import choose_running
from ..sources.opening import open_source
from ..text import VerificationText
from ..verification.checks import check_tokenizer, run_steps
from ..verification.outputs import difference, length_from_files
from ..verification.tensors import check_tensors
from .plan import RevertPlan

__all__ = ["verify_reversion"]

LONGEST = 1024
"""Tokens compared at most: both models attend to everything."""


def verify_reversion(plan: RevertPlan, result: Path, text: VerificationText) -> list[Check]:
    """Check the written folder `result`: every tensor, the tokenizer, and outputs equal to the long model's with full attention."""
    opened = open_source(result)
    running = choose_running(plan.parameters, plan.largest_tensor)
    with running.scratch(result) as scratch:
        steps = [
            lambda: check_tensors(plan, opened),
            lambda: check_tokenizer(plan, result, text),
            lambda: [running.check()],
        ]
        if not running.why_not:
            steps.append(lambda: _check_outputs(plan, result, text, scratch))
        return run_steps(steps)


def _check_outputs(plan: RevertPlan, result: Path, text: VerificationText, scratch: Path | None) -> list[Check]:
    name = "equal to the long model with full attention"
    length = min(plan.new_length, LONGEST if scratch is None else min(LONGEST, length_from_files(plan)))
    ids = text.tokens(length)
    long_model: Any
    rounded = any(tensor.header is not None and tensor.dtype != tensor.header.torch_dtype for tensor in plan.tensors)
    dtype = plan.config.dtype if rounded else None
    long_model, missing = load_result(plan.source.folder, plan.architecture, plan.long_config, dtype, scratch)
    long_model.set_attn_implementation("sdpa" if long_model._supports_sdpa else "eager")
    chance = newly_initialised(missing, long_model)
    expected = outputs(long_model.base_model if chance else long_model, ids, decoder_tokens=length)
    del long_model
    plain, _ = load_source(open_source(result), plan.architecture, None, scratch)
    found = outputs(plain.base_model if chance else plain, ids, decoder_tokens=length)
    largest, relative = difference({one: expected[one] for one in expected if one in found}, found)
    values = {
        "length": length,
        "tokens": int(ids.numel()),
        "max_abs_difference": largest,
        "relative_difference": relative,
        "tolerance": TOLERANCE,
    }
    detail = f"outputs at {length} tokens: largest difference from the long model with full attention {largest:.1e}"
    if relative <= TOLERANCE:
        return [Check(name, PASSED, f"{detail}, equal", values)]
    if plan.changed:
        return [Check(name, MEASURED, f"{detail}, since {plan.changed}", values)]
    return [Check(name, FAILED, f"{detail}, but they must be equal", values)]
