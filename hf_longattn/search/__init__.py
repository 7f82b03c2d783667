"""Search for a mechanism per layer under a budget of time: ``longattn search``."""

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
