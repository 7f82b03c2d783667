"""Compare implementations of attention and of whole models, one small file each; outputs are verified before anything is timed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scripts.dev.benchmarks.implementations import list_implementations, register_implementation
    from scripts.dev.benchmarks.report import BenchmarkResult
    from scripts.dev.benchmarks.run import run_attention, run_model

__all__ = ["BenchmarkResult", "list_implementations", "register_implementation", "run_attention", "run_model"]

_HOMES = {
    "BenchmarkResult": "report",
    "list_implementations": "implementations",
    "register_implementation": "implementations",
    "run_attention": "run",
    "run_model": "run",
}


def __getattr__(name: str) -> Any:
    """Import on first use: the command line shows its help without importing torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
