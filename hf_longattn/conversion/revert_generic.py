"""Revert a plain class with mechanisms (``--generic``) to the plain class, without the mechanisms' config and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checks import Check, Difference, equality
from ..config_format import FIELD
from ..errors import OptionError
from ..inputs.series import series_table
from ..inputs.text import text_sizes
from ..modeling.family.config import attention_implementation
from ..modeling.generic import MECHANISM_NAME_PART, set_implementation
from ..reading import read_json_object
from .architectures import Architecture
from .config import RevertConfig
from .model_loading import load_result, load_source
from .plan_tensors import TensorPlan, parse_dtype
from .report import REPORT
from .seeded_inputs import run_inputs, seeded_inputs
from .sources.base import Source, open_source


def plain_parts(source: Source, settings: RevertConfig, long_config: Any, long_class: str, family: Any) -> dict[str, Any]:
    """Fields of the plan that reverts a ``--generic`` checkpoint.

    Raises:
        OptionError: ``max_length`` or ``positions`` is set; a plain class keeps its positions.
    """
    flags = ["--max-length"] * (settings.max_length is not None) + ["--positions"] * (settings.positions != RevertConfig.positions)
    if flags:
        raise OptionError(f"{source.name!r} was converted with --generic, which left its positions as they were; leave {flags[0]} out.")
    values = {name: value for name, value in long_config.to_dict().items() if name not in (FIELD, "long_attention")}
    config = family.base_config_class.from_dict(values)
    cast = parse_dtype(settings.dtype)
    if cast is not None:
        config.dtype = cast
    (plain_class,) = config.architectures
    architecture = Architecture(family, config, plain_class, long_class)
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
    return {
        "architecture": architecture,
        "config": config,
        "long_config": long_config,
        "tensors": tuple(tensors),
        "warnings": tuple(warnings),
        "inputs": text_sizes(new, new),
    }


def check_plain_outputs(plan: Any, result: Path, inputs: Any, scratch: Path | None) -> list[Check]:
    """Check that the plain model gives the same outputs as the source when the source runs its class's own attention."""
    long: Any = load_result(plan.source.folder, plan.architecture, plan.long_config, plan.cast, scratch)[0]
    seeded = seeded_inputs(long)
    plain: Any = load_source(open_source(result), plan.architecture, None, scratch)[0]
    set_implementation(long, attention_implementation(plain.config), is_tower=False)
    difference = Difference.of(run_inputs(long, seeded), run_inputs(plain, seeded))
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in seeded.items())
    detail = f"outputs for {shapes}: largest difference from the source with the class's attention"
    return [equality("equal to the source with the class's attention", detail, difference, {})]
