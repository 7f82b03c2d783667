"""Public names that are imported on first use, and former names, which warn."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

DEPRECATED_NAMES: dict[str, tuple[str, str]] = {
    "hf_longattn.diagnostics.captured_mass": ("hf_longattn.inspect.captured_mass", "0.4"),
    "hf_longattn.diagnostics.diagnose": ("hf_longattn.inspect.diagnose", "0.4"),
    "hf_longattn.diagnostics.diagnose_picture": ("hf_longattn.inspect.diagnose", "0.4"),
    "hf_longattn.diagnostics.diagnose_sound": ("hf_longattn.inspect.diagnose", "0.4"),
}
"""Former public name -> (new name, version that removes the former name). Names include the package:
``"hf_longattn.search.Priced": ("hf_longattn.search.CostedDesign", "0.4")``."""


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
        if f"{package}.{name}" in DEPRECATED_NAMES:
            return _deprecated(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load, sorted(homes)


def imports_for_type_checkers(package: str) -> dict[str, str]:
    """Name -> its module, from the imports under ``if TYPE_CHECKING`` in a package's source, so that they are listed once."""
    tree = ast.parse(Path(str(sys.modules[package].__file__)).read_text(encoding="utf-8"))
    blocks = [node.body for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block if isinstance(node, ast.ImportFrom) and node.level]
    return {alias.name: "." * (node.level - 1) + str(node.module) for node in imports for alias in node.names if alias.name != "*"}


def _deprecated(old: str) -> Any:
    """The object of a former name. Its first use in a process warns, with the import to write."""
    new, removed_in = DEPRECATED_NAMES[old]
    package, _, name = new.rpartition(".")
    if old not in _WARNED:
        _WARNED.add(old)
        warn_deprecated(old, removed_in, f"from {package} import {name}")
    return getattr(importlib.import_module(package), name)


def warn_deprecated(old: str, removed_in: str, new: str) -> None:
    """Warn of a former name and say what to write. The warning names the line outside this package that uses it."""
    frame = inspect.currentframe()
    assert frame is not None
    while (module := frame.f_globals.get("__name__", "")).startswith((__package__, "importlib.")) and frame.f_back is not None:
        frame = frame.f_back
    sentence = f"{old} is deprecated and will be removed in hf_longattn {removed_in}; write: {new}"
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(sentence, FutureWarning, frame.f_code.co_filename, frame.f_lineno, module, registry)


_WARNED: set[str] = set()
"""Former names that have warned already."""


def on_first_call(package: str, module: str, name: str) -> Callable[..., Any]:
    """The function ``name`` of a module below ``package``. Calling it imports the module."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(f"{package}.{module}"), name)(*args, **kwargs)

    return call
