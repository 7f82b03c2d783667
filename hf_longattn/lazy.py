"""Imports by name: public names on first use, and the modules of registries."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any


def public_names(package: str, modules: Mapping[str, Sequence[str]] | None = None) -> tuple[Callable[[str], Any], list[str]]:
    """``__getattr__`` and ``__all__`` of a package. Its modules are imported on first use of their names.

    Args:
        package: its ``__name__``.
        modules: module -> its public names. A module with a leading dot is relative to the package's parent. Default: what the package
            imports for type checkers (:func:`imports_for_type_checkers`).
    """
    if modules is None:
        homes = imports_for_type_checkers(package)
    else:
        homes = {name: module for module, names in modules.items() for name in names}

    def load(name: str) -> Any:
        if name in homes:
            home = homes[name]
            return getattr(importlib.import_module(f".{home}", package), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load, sorted(homes)


def imports_for_type_checkers(package: str) -> dict[str, str]:
    """Name -> its module, from the imports under ``if TYPE_CHECKING`` in a package's source, so that they are listed once."""
    tree = ast.parse(Path(str(sys.modules[package].__file__)).read_text(encoding="utf-8"))
    blocks = [node.body for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block if isinstance(node, ast.ImportFrom) and node.level]
    return {alias.name: "." * (node.level - 1) + str(node.module) for node in imports for alias in node.names if alias.name != "*"}


def module_names(package: str) -> list[str]:
    """Module names of a sub-package (``mechanisms``, ``families``), sorted. A new file is a new module.

    The sub-package is not imported for this, since its imports may be slow.
    """
    imported = sys.modules.get(f"hf_longattn.{package}")
    folders = [str(Path(__file__).parent.joinpath(*package.split(".")))] if imported is None else list(imported.__path__)
    return sorted(module.name for module in pkgutil.iter_modules(folders) if not module.ispkg)


def load_module(package: str, name: str) -> ModuleType:
    """Import a module of a sub-package."""
    return importlib.import_module(f"hf_longattn.{package}.{name}")
