"""Search for a mechanism per layer under a budget of time or memory: ``longattn search``.

config               the settings of a search
budget, candidates   the limit, and the mechanisms to choose from
design, result       the outcome: a candidate for each layer, with its costs; the report
costs                seconds and bytes of candidates in one layer, measured on this machine
texts, inputs        pieces of the text, images and recordings
model                the checkpoint with any design in its layers
scores, knapsack     stage 1: what each candidate is worth in each layer, and the best choice within the budget
objectives, study    stage 2: loss or KL divergence of whole designs, tried by Optuna
folder, plot, run    where it is kept, its figure, and all of it together
auto                 ``--mechanism auto`` of a conversion
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import public_names

if TYPE_CHECKING:
    from .auto import choose_mechanisms as choose_mechanisms
    from .budget import Budget as Budget
    from .design import CostedDesign as CostedDesign
    from .design import Design as Design
    from .result import SearchResult as SearchResult
    from .run import search_design as search_design

__getattr__, __all__ = public_names(__name__)
