"""Run a long model with full attention beside the plain one made from it, on the same text."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...positions import SINUSOIDAL, STRATEGIES, extend_table
from ..files.tensors import read_tensor
from ..report import FAILED, MEASURED, PASSED, SKIPPED, TOLERANCE, Check
from ..running.calling import outputs
from ..running.loading import load_result, load_source, newly_initialised
from ..running.memory import choose_running
from ..sources.base import Source
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
            lambda: _check_positions(plan, opened),
            lambda: check_tokenizer(plan, result, text),
            lambda: [running.check()],
        ]
        if not running.why_not:
            steps.append(lambda: _check_outputs(plan, result, text, scratch))
        return run_steps(steps)


def _check_positions(plan: RevertPlan, result: Source) -> list[Check]:
    """The written tables, extended as the conversion did, are the long model's again: then they are those of the source."""
    name, rule, before = "positions of the model that was converted", plan.long_config.position_extension, plan.length_before
    tables = [tensor for tensor in plan.tensors if tensor.action == "shortened" and tensor.header is not None]
    if before is None or not tables:
        return []
    if rule not in STRATEGIES:
        return [Check(name, MEASURED, "the conversion dropped the position table, so that its values cannot come back")]
    if plan.new_length != before:
        return [Check(name, SKIPPED, f"the model that was converted took {before} tokens, and the result takes {plan.new_length}")]
    largest = bound = 0.0
    for tensor in tables:
        assert tensor.header is not None
        long, short = read_tensor(tensor.header).double(), read_tensor(result.tensors[tensor.name])
        table = plan.architecture.family.table(tensor.name)
        strategy = rule if table is None or table.learned else SINUSOIDAL
        again = extend_table(short, len(long), offset=tensor.offset, strategy=strategy).double()
        largest = max(largest, float((again - long).abs().max()))
        bound = max(bound, 4 * max(torch.finfo(dtype).eps for dtype in (short.dtype, tensor.header.torch_dtype)) * float(long.abs().max()))
    detail = f"extended by {rule!r} again, the table differs from the long model's by {largest:.1e}"
    if largest <= bound:
        return [Check(name, PASSED, f"{detail}, which is rounding: they are the source's", {"max_abs_difference": largest})]
    why = "it was trained further, or extended in another way, so they are not the source's"
    return [Check(name, MEASURED, f"{detail}: {why}", {"max_abs_difference": largest})]


def _check_outputs(plan: RevertPlan, result: Path, text: VerificationText, scratch: Path | None) -> list[Check]:
    name = "equal to the long model with full attention"
    length = min(plan.new_length, LONGEST if scratch is None else min(LONGEST, length_from_files(plan)))
    ids = text.tokens(length)
    rounded = any(tensor.header is not None and tensor.dtype != tensor.header.torch_dtype for tensor in plan.tensors)
    dtype = plan.config.dtype if rounded else None
    expected, chance = _full_attention(plan, None, ids, dtype, scratch)
    source = _as_before(plan)
    as_source = {} if source is None else _full_attention(plan, source, ids, dtype, scratch)[0]
    plain, _ = load_source(open_source(result), plan.architecture, None, scratch)
    found = outputs(plain.base_model if chance else plain, ids, decoder_tokens=length)
    checks = [_compared(name, "the long model with full attention", expected, found, ids, plan.changed)]
    if source is not None:
        other = "the long model with full attention and the rotary positions that it was converted from"
        checks.append(_compared("equal to the model that was converted, with these weights", other, as_source, found, ids, ""))
    return checks


def _full_attention(
    plan: RevertPlan, config: Any, ids: Tensor, dtype: torch.dtype | None, scratch: Path | None
) -> tuple[dict[str, Tensor], bool]:
    """Outputs of the long model with full attention, and whether its head was left to chance, so that they are the base's.

    config: to load it with; `None` takes its own.
    """
    model: Any
    model, missing = load_result(plan.source.folder, plan.architecture, plan.long_config, dtype, scratch, config_instead=config)
    model.use_base_attention()
    chance = newly_initialised(missing, model)
    return outputs(model.base_model if chance else model, ids, decoder_tokens=ids.shape[1]), chance


def _as_before(plan: RevertPlan) -> Any:
    """The long model's config with the rotary positions of the model that was converted; `None` where the result must not have them."""
    before = getattr(plan.long_config, "extended_from", None)
    if not isinstance(before, dict) or not before.get("rope_parameters") or plan.length_before is None:
        return None
    if plan.new_length > plan.length_before or before["rope_parameters"] == plan.long_config.rope_parameters:
        return None
    config = copy.deepcopy(plan.long_config)
    for name in ("rope_parameters", "max_position_embeddings", "original_max_position_embeddings"):
        if name in before:
            setattr(config, name, before[name])
    return config


def _compared(name: str, other: str, expected: dict[str, Tensor], found: dict[str, Tensor], ids: Tensor, changed: str) -> Check:
    """changed: why the outputs differ; empty when they must not."""
    largest, relative = difference({one: expected[one] for one in expected if one in found}, found)
    length = ids.shape[1]
    values = {
        "length": length,
        "tokens": int(ids.numel()),
        "max_abs_difference": largest,
        "relative_difference": relative,
        "tolerance": TOLERANCE,
    }
    detail = f"outputs at {length} tokens: largest difference from {other} {largest:.1e}"
    if relative <= TOLERANCE:
        return Check(name, PASSED, f"{detail}, equal", values)
    if changed:
        return Check(name, MEASURED, f"{detail}, since {changed}", values)
    return Check(name, FAILED, f"{detail}, but they must be equal", values)
