"""From a short checkpoint to a long one, and back: plan → transform → write → verify."""

from .convert import convert_checkpoint
from .exporting.export import ExportReport, export_checkpoint
from .inspection import Inspection, inspect_checkpoint
from .planning.conversion import plan_conversion
from .planning.plan import ConversionPlan
from .planning.result import TensorPlan
from .report import Check, ConversionReport
from .reverting.revert import revert_checkpoint

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
