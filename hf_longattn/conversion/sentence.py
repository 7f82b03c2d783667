"""A sentence-transformers folder as a source: its transformer is converted, its other modules come along."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import CheckpointError
from .reading import read_json_object
from .source import SENTENCE_MODULES
from .write import write_json

__all__ = ["transformer_folder", "write_sentence_modules"]

SETTINGS = "sentence_*_config.json"
"""Of the transformer; the name in the middle was the architecture's in old versions."""

ROOT_FILES = ("config_sentence_transformers.json",)


def transformer_folder(folder: Path) -> Path:
    """The folder of the transformer, which is the first of the modules.

    Raises:
        CheckpointError: modules.json is damaged, names a folder elsewhere, or does not begin with a transformer.
    """
    first = _modules(folder)[0]
    if not first["type"].endswith(".Transformer"):
        raise CheckpointError(
            f"{str(folder)!r} begins with a {first['type']!r}; only sentence-transformers over a Transformer have a long form."
        )
    return folder / first["path"]


def write_sentence_modules(source: Path, folder: Path, new_length: int) -> list[str]:
    """Write the modules around the transformer, which lies at the root of the result, so that AutoModel finds it as well.

    Args:
        source: the source's sentence-transformers folder.
        folder: where the transformer has been written.
        new_length: tokens; `max_seq_length` follows, since shorter texts are what the source was limited to.

    Returns:
        The names of the files and folders written.
    """
    modules = _modules(source)
    transformer = source / modules[0]["path"]
    written = [SENTENCE_MODULES]
    write_json(folder / SENTENCE_MODULES, [{**modules[0], "path": ""}, *modules[1:]])
    for settings in sorted(transformer.glob(SETTINGS)):
        values = read_json_object(settings)
        if values.get("max_seq_length") is not None:
            values["max_seq_length"] = new_length
        write_json(folder / settings.name, values)
        written.append(settings.name)
    for name in ROOT_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
            written.append(name)
    for module in modules[1:]:
        if module["path"] and (source / module["path"]).is_dir():
            shutil.copytree(source / module["path"], folder / module["path"])
            written.append(module["path"])
    return written


def _modules(folder: Path) -> list[dict[str, Any]]:
    file = folder / SENTENCE_MODULES
    try:
        modules = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(file)!r} is not valid JSON ({error}).") from error
    if not isinstance(modules, list) or not modules or not all(_is_module(one) for one in modules):
        raise CheckpointError(f"{str(file)!r} must hold a list of modules, each with a path and a type.")
    for one in modules:
        path = PurePosixPath(one["path"])
        if path.is_absolute() or ".." in path.parts:
            raise CheckpointError(f"{str(file)!r} names the folder {one['path']!r}, which lies outside of {str(folder)!r}.")
    return modules


def _is_module(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("path"), str) and isinstance(value.get("type"), str)
