"""Inspect a model: the mechanism and path of every layer, and the spread of attention over an input
(``longattn inspect``)."""

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
