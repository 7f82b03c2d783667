"""What a model attends to as its text grows, and what each mechanism would keep of it: ``longattn diagnose``.

rows        the softmax of one layer, some queries at a time, and what is measured of it
watching    queries and keys at the moment of attention, in long and plain models
candidates  the mechanisms compared, and which keys each keeps
texts       token ids of a text, with and without a planted needle
loading     the checkpoint, with more positions if asked
measure     all of it together
diagnosis   the result: numbers, conclusion, recommendation, JSON
page        the result as one HTML page, by a template; charts draws its pictures
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .candidates import Candidate
    from .diagnosis import Diagnosis, LayerDiagnosis, LengthDiagnosis, Recommendation
    from .measure import CapturedMass, captured_mass, diagnose
    from .page import html_page
    from .texts import Needle

__all__ = [
    "Candidate", "CapturedMass", "Diagnosis", "LayerDiagnosis", "LengthDiagnosis", "Needle", "Recommendation", "captured_mass", "diagnose",
    "html_page",
]  # fmt: skip

_WHERE = {
    "candidates": ("Candidate",),
    "measure": ("CapturedMass", "captured_mass", "diagnose"),
    "diagnosis": ("Diagnosis", "LayerDiagnosis", "LengthDiagnosis", "Recommendation"),
    "page": ("html_page",),
    "texts": ("Needle",),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
