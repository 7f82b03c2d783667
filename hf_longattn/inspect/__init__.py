"""Inspect a model: the mechanism and path of every layer, and the spread of attention over an input (``longattn inspect``).

layers           the layers, parameters, decode state and cost of a long checkpoint; the engine path of every layer
stock_layers     what the layers of a stock model declare, and what runs for them
drawing          pictures of attention patterns

attention        the diagnosis of a model on a text, image or sound, by all of the following modules
texts            token ids of a text
watching         queries and keys of every layer while a long or plain model runs
layer_attention  the softmax of one layer, for some queries at a time, and the numbers measured from it
candidates       the compared mechanisms, and the keys that each retains
diagnosis        the result: numbers, conclusion, JSON
"""

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
