"""The modules around the transformer of a sentence-transformers folder, written beside the converted one."""

from __future__ import annotations

import shutil
from pathlib import Path

from ...reading import read_json_object
from ..files.writing import write_json
from ..sources.sentence import SENTENCE_MODULES, sentence_modules

__all__ = ["write_sentence_modules"]

SETTINGS = "sentence_*_config.json"
"""Of the transformer; the name in the middle was the architecture's in old versions."""

ROOT_FILES = ("config_sentence_transformers.json",)


def write_sentence_modules(source: Path, folder: Path, new_length: int) -> list[str]:
    """Write the modules around the transformer, which lies at the root of the result, so that AutoModel finds it as well.

    Args:
        source: the source's sentence-transformers folder.
        folder: where the transformer has been written.
        new_length: tokens; `max_seq_length` follows, since shorter texts are what the source was limited to.

    Returns:
        The names of the files and folders written.
    """
    modules = sentence_modules(source)
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
