"""A PEFT adapter that goes into the result beside its converted base."""

from __future__ import annotations

import shutil
from pathlib import Path

from ...reading import read_json_object
from ..architectures.base import Architecture
from ..files.writing import write_json
from ..sources.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS

__all__ = ["ADAPTER_FOLDER", "write_adapter"]

ADAPTER_FOLDER = "adapter"
"""Of the result, for an adapter that is kept beside its base."""


def write_adapter(adapter: Path, folder: Path, base: Path, architecture: Architecture) -> list[str]:
    """Copy an adapter, with the converted base as the one that it belongs to.

    Args:
        adapter: its folder.
        folder: the root of the result as it is being written.
        base: where the result will stand.
        architecture: of the conversion.

    Returns:
        The names of the files written.
    """
    config = read_json_object(adapter / ADAPTER_CONFIG)
    config["base_model_name_or_path"] = str(base)
    config["revision"] = None
    if config.get("auto_mapping"):
        config["auto_mapping"] = {"base_model_class": architecture.long_class, "parent_library": architecture.family.module}
    (folder / ADAPTER_FOLDER).mkdir()
    write_json(folder / ADAPTER_FOLDER / ADAPTER_CONFIG, config)
    shutil.copyfile(adapter / ADAPTER_WEIGHTS, folder / ADAPTER_FOLDER / ADAPTER_WEIGHTS)
    return [f"{ADAPTER_FOLDER}/{name}" for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
