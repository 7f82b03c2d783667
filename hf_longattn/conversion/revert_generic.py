"""Revert a plain class with mechanisms (``--generic``) to the plain class, without the mechanisms' config and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checks import Check, Difference, equality
from ..errors import OptionError
from ..inputs.series import series_table
from ..inputs.text import text_sizes
from ..modeling.family.config import attention_implementation
from ..modeling.generic import MECHANISM_NAME_PART, load_generic, stacks_of
from ..reading import read_json_object
from .architectures import read_generic
from .config import RevertConfig
from .model_loading import load_plain
from .plan_tensors import TensorPlan, parse_dtype
from .report import REPORT
from .seeded_inputs import run_inputs, seeded_inputs
from .sources.base import Source, open_source


def plain_parts(source: Source, settings: RevertConfig) -> dict[str, Any]:
    """Fields of the plan that reverts a ``--generic`` checkpoint.

    Raises:
        OptionError: ``max_length`` or ``positions`` is set; a plain class keeps its positions.
        CheckpointError: from :func:`read_generic`.
    """
    flags = ["--max-length"] * (settings.max_length is not None) + ["--positions"] * (settings.positions != RevertConfig.positions)
    if flags:
        raise OptionError(f"{source.name!r} was converted with --generic, which left its positions as they were; leave {flags[0]} out.")
    architecture = read_generic(source)
    config: Any = architecture.source_config
    del config.long_attention
    cast = parse_dtype(settings.dtype)
    if cast is not None:
        config.dtype = cast
    tensors = []
    for name, header in source.tensors.items():
        dtype = cast if cast is not None and header.dtype.is_floating_point else header.dtype
        dropped = MECHANISM_NAME_PART in name
        reason = "not a parameter of the plain model" if dropped else ""
        shape = None if dropped else header.shape
        tensors.append(TensorPlan(name, "dropped" if dropped else "kept", dtype, header.shape, shape, header, reason=reason))
    report = source.folder / REPORT
    plan = (read_json_object(report).get("plan") if report.is_file() else None) or {}
    old, new = (int(plan.get(name) or 0) for name in ("old_length", "new_length"))
    kind = "rotary positions" if series_table(config) is None else "positions"
    warnings = [f"The {kind} stay those of the conversion, for {new:,} tokens instead of {old:,}."] if old != new else []
    fields = {"architecture": architecture, "config": config, "long_config": config, "tensors": tuple(tensors), "warnings": tuple(warnings)}
    return {**fields, "inputs": text_sizes(new, new)}


def check_plain_outputs(plan: Any, result: Path) -> list[Check]:
    """Check that the plain model gives the same outputs as the source when the source runs its class's own attention."""
    long: Any = nn.Module.float(load_generic(plan.source.folder))
    inputs = seeded_inputs(long)
    plain: Any = load_plain(open_source(result), plan.architecture, torch.float32)
    for stack in stacks_of(long):
        stack.set_attn_implementation(attention_implementation(plain.config))
    difference = Difference.of(run_inputs(long, inputs), run_inputs(plain, inputs))
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
    detail = f"outputs for {shapes}: largest difference from the source with the class's attention"
    return [equality("equal to the source with the class's attention", detail, difference, {})]
