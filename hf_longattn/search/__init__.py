"""Search for a mechanism per layer under a budget of time or memory: ``longattn search``.

budget, candidates   the limit, and the mechanisms to choose from
design, result       the outcome: a candidate for each layer, with its costs; the report
costs                seconds and bytes of candidates in one layer, measured on this machine
texts, model         pieces of the text; the checkpoint with any design in its layers
scores, knapsack     stage 1: what each candidate is worth in each layer, and the best choice within the budget
objectives, study    stage 2: loss or KL divergence of whole designs, tried by Optuna
layers               which layers keep full attention
transfer             attention transfer of mechanisms with parameters before they are judged
folder, plot, run    where it is kept, its picture, and all of it together
auto                 ``--mechanism auto`` of a conversion
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .auto import choose_mechanisms
    from .budget import Budget
    from .design import CostedDesign, Design
    from .result import SearchResult
    from .run import search_design

__all__ = ["Budget", "CostedDesign", "Design", "SearchResult", "choose_mechanisms", "search_design"]

_WHERE = {
    "auto": ("choose_mechanisms",),
    "budget": ("Budget",),
    "design": ("CostedDesign", "Design"),
    "result": ("SearchResult",),
    "run": ("search_design",),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
