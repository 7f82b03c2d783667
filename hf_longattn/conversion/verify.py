"""The check of a written folder, for callers that have not loaded its models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..reports import Check
from .check import check_result
from .model_loading import load_result, load_source
from .plan import ConversionPlan
from .report import StageProgress


def verify(
    plan: ConversionPlan, result: Path, inputs: Any, *, given_text: bool = False, progress: StageProgress | None = None
) -> list[Check]:
    """Check the written folder `result` against the source of `plan`: load both, and call :func:`.check.check_result`."""
    source, missing = load_source(plan.source, plan.architecture, None)
    model, lacking = load_result(result, plan.architecture, plan.config)
    return check_result(plan, source, model, (missing, lacking), result, inputs, given_text=given_text, progress=progress)
