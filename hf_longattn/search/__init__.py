"""Search for a mechanism per layer under a budget of time or memory: ``longattn search``.

run                  the search: its steps, and what is known after each of them; ``--mechanism auto`` of a conversion
config               its settings, with the budget
candidates           the mechanisms to choose from
costs, design        seconds and bytes of a candidate in one layer, measured on this machine; a candidate for each layer, with its costs
model                the checkpoint with any design in its layers, and what it reads
scores, knapsack     what each candidate is worth in each layer, the best choice within the budget, and what a design does to predictions
result               the report
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..names import public_names

if TYPE_CHECKING:
    from .config import Budget as Budget
    from .config import SearchConfig as SearchConfig
    from .design import CostedDesign as CostedDesign
    from .design import Design as Design
    from .result import SearchResult as SearchResult
    from .run import choose_mechanisms as choose_mechanisms
    from .run import search_design as search_design

__getattr__, __all__ = public_names(__name__)
