"""Inspect a model: the mechanism and path of every layer, and the spread of attention over an input
(``longattn inspect``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..names import public_names

if TYPE_CHECKING:
    from .attention import CapturedMass as CapturedMass
    from .attention import captured_mass as captured_mass
    from .attention import diagnose as diagnose
    from .candidates import Candidate as Candidate
    from .diagnosis import Diagnosis as Diagnosis
    from .diagnosis import LayerDiagnosis as LayerDiagnosis
    from .diagnosis import LengthDiagnosis as LengthDiagnosis
    from .layers import Explanation as Explanation
    from .layers import Inspection as Inspection
    from .layers import explain as explain
    from .layers import inspect_checkpoint as inspect_checkpoint
    from .stock_layers import StockInspection as StockInspection
    from .stock_layers import inspect_stock as inspect_stock

__getattr__, __all__ = public_names(__name__)
