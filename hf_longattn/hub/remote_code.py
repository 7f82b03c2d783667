"""A file beside a model that imports its classes from the installed package.

    write_remote_code("my-long-bert")
    AutoModel.from_pretrained("my-long-bert", trust_remote_code=True)     # in a program that does not import hf_longattn

``config.json`` names the classes of that file under ``auto_map``. The package must be installed where the model is loaded.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from ..errors import CheckpointError
from ..files import is_generic, write_text
from ..loading import read_config
from ..modeling.family.definition import module_name
from ..modeling.family.registration import auto_classes, mapped_names

FILE = '''\
"""The classes of this model, from the installed hf_longattn. Written by hf_longattn."""

try:
    from hf_longattn.families import {names}
except ModuleNotFoundError as error:
    if str(error.name).partition(".")[0] != "hf_longattn":
        raise
    raise ImportError("This model needs hf_longattn; type: pip install . in a clone of the hf_longattn repository.") from error
'''


def write_remote_code(folder: str | Path) -> list[str]:
    """Write a file that imports the classes of a saved Long model from this package. ``config.json`` names it.

    Args:
        folder: a saved Long model. A file of an earlier call is replaced; no other file but ``config.json`` changes.

    Returns:
        The names of the files written.

    Raises:
        CheckpointError: the model is not a Long model, the folder cannot be written, or another file has the name of the file.
    """
    place = Path(folder)
    values = read_config(place)
    model_type = str(values.get("model_type"))
    if not model_type.startswith("long_") or is_generic(values) or model_type not in CONFIG_MAPPING_NAMES:
        raise CheckpointError(
            f"{str(folder)!r} holds a model of type {values.get('model_type')!r}, which needs no code of this package; omit --remote-code."
        )
    file = place / f"modeling_{module_name(model_type)}.py"
    if os.path.lexists(file) and not (file.is_file() and file.read_bytes().startswith(FILE.partition("\n")[0].encode())):
        raise CheckpointError(f"{str(file)!r} would be replaced, but hf_longattn did not write it; rename it or move it away.")
    classes = {"AutoConfig": CONFIG_MAPPING_NAMES[model_type]}
    for auto, table in auto_classes():
        if names := mapped_names(table)[0].get(model_type):
            classes[auto] = names if isinstance(names, str) else names[0]
    write_text(file, FILE.format(names=", ".join(sorted({*classes.values()}))))
    values = {**values, "auto_map": {auto: f"{file.stem}.{name}" for auto, name in classes.items()}}
    write_text(place / "config.json", json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    return [file.name, "config.json"]
