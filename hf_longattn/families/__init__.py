"""Long<Base> families: the models of transformers with long attention, one short file per base architecture.

``hf_longattn.families.bert`` holds ``LongBertConfig``, ``LongBertModel``, ``LongBertForMaskedLM`` … Importing this package imports
neither torch nor a model: the names below and every ``Long…`` class arrive on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "AttentionNames": "family.definition",
    "FAMILIES": "family.definition",
    "Family": "family.definition",
    "PositionTable": "family.definition",
    "enable_long_attention": "generic",
    "load_generic": "generic",
    "register": "family.registration",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"..modeling.{_WHERE[name]}", __name__), name)
    if name.startswith("Long"):
        from ..modeling.family.definition import family_with

        family = family_with(name)
        if family is not None:
            return getattr(importlib.import_module(family.module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    from ..modeling.family.definition import FAMILIES

    return sorted([*_WHERE, *(name for family in FAMILIES.values() for name in family.exports)])
