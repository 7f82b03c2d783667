"""Search for a mechanism per layer under a budget of time or memory: ``longattn search``.

budget       the settings of a search, including the budget
search       the search and its result; ``--mechanism auto`` of a conversion
model        the checkpoint with any design in its layers, and its inputs
design       candidates (mechanisms for single layers), and designs (a candidate for each layer) with their costs
costs        seconds and bytes of a candidate in one layer, measured on this machine
choice       scores of candidates in each layer, the best choice within the budget, and effects on predictions
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
