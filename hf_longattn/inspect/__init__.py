"""Inspect a model (``longattn inspect``): the mechanism and engine path of every layer, and where attention goes."""

# ruff: noqa: F401 (names for other packages)
from __future__ import annotations

from typing import TYPE_CHECKING

from ..names import public_names

if TYPE_CHECKING:
    from .attention import CapturedMass, captured_mass, diagnose
    from .candidates import Candidate
    from .diagnosis import Diagnosis, LengthDiagnosis
    from .layer_attention import LayerDiagnosis
    from .layers import Explanation, Inspection, explain, inspect_checkpoint
    from .stock_layers import StockInspection, inspect_stock

__getattr__, __all__ = public_names(__name__)
