"""Registered names and module look-up, for the installed package and for copies bundled with models.

A model that was pushed with its code (:func:`hf_longattn.hub.bundle_remote_code`) brings a copy of this package, perhaps of another
version. Each copy registers under its own names in the tables of the process (transformers' attention functions and cache layers, torch's
operators), so several copies work side by side.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

PLAIN_BACKEND = "longattn"
"""The ``attn_implementation`` that users type. It stands for the copy that the model comes from."""

COPY = "" if __package__ == "hf_longattn" else f"_{hashlib.sha256(str(__package__).encode()).hexdigest()[:8]}"
BACKEND = PLAIN_BACKEND + COPY
"""The name of the attention function and of the mask function. Names of cache layer types start with it, too."""
OPERATORS = f"hf_longattn{COPY}"
"""The namespace of torch operators."""
LOGGER = "transformers.hf_longattn"
"""The logger's name. It is below transformers' logger, whose verbosity then applies."""
BEFORE_UPLOAD: dict[str, Callable[[str, str, str], None]] = {}
"""Functions called before a saved model is pushed. Arguments: the model's folder, repository, and the name that it was loaded from. The
installed package registers one for the model card; a bundled copy has none."""

FLAT_FILES: dict[str, dict[str, str]] = {}
"""Package -> module -> flat file name. Filled in a bundled copy, which has no folders (:mod:`hf_longattn.hub.remote_code`)."""


def module_names(package: str) -> list[str]:
    """Module names of a sub-package (``mechanisms``, ``families``), sorted. A new file is a new module."""
    if FLAT_FILES:
        return sorted(FLAT_FILES[package])
    return sorted(module.name for module in pkgutil.iter_modules(_folders(package)) if not module.ispkg)


def module_path(package: str, name: str) -> Path | None:
    """The file of a sub-package's module, found without importing it; ``None`` if there is none."""
    if FLAT_FILES:
        file = FLAT_FILES.get(package, {}).get(name)
        return None if file is None else Path(__file__).with_name(f"{file}.py")
    candidates = (Path(folder, name) for folder in _folders(package))
    files = (file for path in candidates for file in (path.with_suffix(".py"), path / "__init__.py"))
    return next((file for file in files if file.is_file()), None)


def _folders(package: str) -> list[str]:
    """Folders of a sub-package's modules. The sub-package is not imported for this, since its imports may be slow."""
    imported = sys.modules.get(f"{__package__}.{package}".rstrip("."))
    return [str(Path(__file__).parent.joinpath(*package.split(".")))] if imported is None else list(imported.__path__)


def load_module(package: str, name: str) -> ModuleType:
    """Import a module of a sub-package."""
    return importlib.import_module(f"{__package__}.{FLAT_FILES[package][name] if FLAT_FILES else f'{package}.{name}'}")


@cache
def load_modules(package: str) -> None:
    """Import every module of a sub-package once. Its classes register themselves."""
    for name in module_names(package):
        load_module(package, name)
