"""From a short checkpoint to a long one, and back: plan → write → verify.

The public names are imported on first use, so that the command line can read the settings of a conversion without loading torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compress import CompressionConfig, CompressionReport, compress_checkpoint
    from .config import ConversionConfig, RevertConfig
    from .convert import convert_checkpoint
    from .export import ExportReport, export_checkpoint
    from .folders import complete_folder
    from .gguf_export import export_gguf
    from .inspection import Inspection, inspect_checkpoint
    from .native import export_native
    from .plan import ConversionPlan, plan_conversion
    from .plan_tensors import TensorPlan
    from .report import Check, ConversionReport
    from .revert import revert_checkpoint

__all__ = [
    "Check",
    "CompressionConfig",
    "CompressionReport",
    "ConversionConfig",
    "ConversionPlan",
    "ConversionReport",
    "ExportReport",
    "Inspection",
    "RevertConfig",
    "TensorPlan",
    "complete_folder",
    "compress_checkpoint",
    "convert_checkpoint",
    "export_checkpoint",
    "export_gguf",
    "export_native",
    "inspect_checkpoint",
    "plan_conversion",
    "revert_checkpoint",
]

_WHERE = {
    "compress": ("CompressionConfig", "CompressionReport", "compress_checkpoint"),
    "config": ("ConversionConfig", "RevertConfig"),
    "convert": ("convert_checkpoint",),
    "export": ("ExportReport", "export_checkpoint"),
    "folders": ("complete_folder",),
    "inspection": ("Inspection", "inspect_checkpoint"),
    "gguf_export": ("export_gguf",),
    "native": ("export_native",),
    "plan": ("ConversionPlan", "plan_conversion"),
    "plan_tensors": ("TensorPlan",),
    "report": ("Check", "ConversionReport"),
    "revert": ("revert_checkpoint",),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
