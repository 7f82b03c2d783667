"""Search a mechanism for every layer, under a budget of time: ``longattn search``."""

# ruff: noqa: F401 (names for other packages)
from __future__ import annotations

from typing import TYPE_CHECKING

from ..names import public_names

if TYPE_CHECKING:
    from .budget import Budget, SearchConfig
    from .design import CostedDesign, Design
    from .search import SearchResult, choose_mechanisms, search_design

__getattr__, __all__ = public_names(__name__)
