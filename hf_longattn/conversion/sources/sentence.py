"""A sentence-transformers folder as a source: its transformer is converted, its other modules come along."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import CheckpointError
from ...reading import read_json

SENTENCE_MODULES = "modules.json"


def transformer_folder(folder: Path) -> Path:
    """The folder of the transformer, which is the first of the modules.

    Raises:
        CheckpointError: modules.json is damaged, names a folder elsewhere, or does not begin with a transformer.
    """
    first = sentence_modules(folder)[0]
    if not first["type"].endswith(".Transformer"):
        raise CheckpointError(
            f"{str(folder)!r} begins with a {first['type']!r}; only sentence-transformers over a Transformer have a long form."
        )
    return folder / first["path"]


def sentence_modules(folder: Path) -> list[dict[str, Any]]:
    """What its modules.json lists, the transformer first.

    Raises:
        CheckpointError: it is damaged, or names a folder elsewhere.
    """
    file = folder / SENTENCE_MODULES
    modules = read_json(file)
    if not isinstance(modules, list) or not modules or not all(_is_module(one) for one in modules):
        raise CheckpointError(f"{str(file)!r} must hold a list of modules, each with a path and a type.")
    for one in modules:
        path = PurePosixPath(one["path"])
        if path.is_absolute() or ".." in path.parts:
            raise CheckpointError(f"{str(file)!r} names the folder {one['path']!r}, which lies outside of {str(folder)!r}.")
    return modules


def _is_module(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("path"), str) and isinstance(value.get("type"), str)
