"""Measuring: every side of a comparison is one small file; equality is shown before anything is timed."""

from .run import BenchmarkResult, run_attention, run_model
from .sides import list_sides, register_side

__all__ = ["BenchmarkResult", "list_sides", "register_side", "run_attention", "run_model"]
