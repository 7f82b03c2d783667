"""Search for a mechanism per layer under a budget of time or memory: ``longattn search``.

budget       the settings of a search, with its budget
search       the search, step by step, and its result; ``--mechanism auto`` of a conversion
model        the checkpoint with any design in its layers, and what it reads
design       the mechanisms to choose from; a design, which has one of them for each layer, and its costs
costs        seconds and bytes of a candidate in one layer, measured on this machine
choice       what each candidate is worth in each layer, the best choice within the budget, and what a design does to predictions
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..names import public_names

if TYPE_CHECKING:
    from .budget import Budget as Budget
    from .budget import SearchConfig as SearchConfig
    from .design import CostedDesign as CostedDesign
    from .design import Design as Design
    from .search import SearchResult as SearchResult
    from .search import choose_mechanisms as choose_mechanisms
    from .search import search_design as search_design

__getattr__, __all__ = public_names(__name__)
