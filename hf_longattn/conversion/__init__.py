"""From a short checkpoint to a long one, and back: plan → transform → write → verify."""

from __future__ import annotations

from .convert import convert_checkpoint
from .export import ExportReport, export_checkpoint
from .inspection import Inspection, inspect_checkpoint
from .plan import ConversionPlan, plan_conversion
from .plan_tensors import TensorPlan
from .report import Check, ConversionReport
from .revert import revert_checkpoint

__all__ = [
    "Check",
    "ConversionPlan",
    "ConversionReport",
    "ExportReport",
    "Inspection",
    "TensorPlan",
    "convert_checkpoint",
    "export_checkpoint",
    "inspect_checkpoint",
    "plan_conversion",
    "revert_checkpoint",
]
