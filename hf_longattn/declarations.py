"""Options and arguments of mechanisms, tasks and families, read from one file without importing torch.

`make docs` writes ``declarations.json`` from the imported classes (:mod:`scripts.dev.tools.declared`), and a test compares the two. A
mechanism or task that the file lacks, such as a new one, is checked when it is imported.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import json
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")
LIBRARY = "transformers."
"""Prefix of the full names of transformers' classes. Their fields depend on the installed version."""


@cache
def declared() -> Mapping[str, dict[str, Any]]:
    """The file's mechanisms, tasks, families and classes by name.

    A copy of this package that is bundled with a model lacks the file. The result is then empty.
    """
    return defaultdict(dict, json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {})


@cache
def declared_class(name: str) -> type[Any]:
    """The class with this full name, without its methods.

    A class is imported only if it is not in the file. ``dataclasses.fields``, ``HfArgumentParser`` and ``Options.build`` read the result
    like the class itself. A class of transformers has the annotations of its fields, but no fields.
    """
    module, _, class_name = name.rpartition(".")
    entry = declared()["classes"].get(name)
    if entry is None:
        imported: type[Any] = getattr(importlib.import_module(module), class_name)
        return imported
    bases = tuple(map(declared_class, entry["bases"]))
    if name.startswith(LIBRARY):
        return type(class_name, bases, {"__module__": module, "__annotations__": _library_annotations(module, class_name)})
    fields = [(field, kind, _field(**values)) for field, (kind, values) in entry["fields"].items()]
    rebuilt = dataclasses.make_dataclass(class_name, fields, bases=bases, namespace=entry["constants"], frozen=entry["frozen"])
    rebuilt.__module__ = module
    return rebuilt


def _field(default: Any, **values: Any) -> Any:
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, **values)
    return dataclasses.field(default=default, **values)


def _library_annotations(module: str, name: str) -> dict[str, str]:
    """The annotated names of a class of the installed transformers, read from its source, each mapped to ``"object"``."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return {entry.target.id: "object" for entry in body if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name)}
