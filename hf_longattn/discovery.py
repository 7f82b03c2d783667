"""Find and import the modules of a room (``mechanisms``, ``families``) by their names: a new mechanism or family is one new file.

Everything that is imported by a name made at run time is imported here, because a model that is pushed with its code has a list of
the modules that it brings in place of this file (:mod:`hf_longattn.hub.remote_code`).
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def module_names(room: str) -> list[str]:
    """The modules of a room, sorted."""
    return sorted(found.name for found in pkgutil.iter_modules(importlib.import_module(f"{__package__}.{room}").__path__))


def load_module(room: str, name: str) -> ModuleType:
    """Import one of them."""
    return importlib.import_module(f"{__package__}.{room}.{name}")
