"""A PEFT adapter as a source: its base is converted, and the adapter put beside it or merged into it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import CheckpointError
from .architecture import Architecture
from .reading import read_json_object
from .source import ADAPTER_CONFIG, Place, Source, find_place, open_place
from .tensors import TensorHeader, read_headers
from .write import write_json

__all__ = ["ADAPTER_FOLDER", "check_adapter", "open_adapter", "write_adapter"]

ADAPTER_FOLDER = "adapter"
"""Of the result, for an adapter that is kept beside its base."""

PEFT_PREFIX = "base_model.model."
"""Before the base's own names in an adapter's tensors."""

WEIGHTS, PICKLED_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"


def open_adapter(place: Place, *, merge: bool) -> Source:
    """The base that an adapter was trained on, with the adapter beside it or merged into its weights.

    Args:
        place: of the adapter.
        merge: add the adapter to the base's weights when they are read; that loads the whole model with peft.

    Raises:
        CheckpointError: no base named, a base that cannot be opened, or no safetensors weights.
    """
    name, folder = place.name, place.folder
    config = read_json_object(folder / ADAPTER_CONFIG)
    base_name = config.get("base_model_name_or_path")
    if not isinstance(base_name, str) or not base_name:
        raise CheckpointError(
            f"{str(folder / ADAPTER_CONFIG)!r} names no base_model_name_or_path; write the folder or Hub name of its base there."
        )
    if not (folder / WEIGHTS).is_file() and place.remote is None:
        found = f"only {PICKLED_WEIGHTS!r}: load it with peft and save it again" if (folder / PICKLED_WEIGHTS).is_file() else "no weights"
        raise CheckpointError(f"The adapter {name!r} has {found}; expected {WEIGHTS}.")
    try:
        found_base = find_place(
            base_name,
            revision=config.get("revision"),
            token=place.token,
            headers_only=place.remote is not None,
            allow_pickle=place.allow_pickle,
        )
        if (found_base.folder / ADAPTER_CONFIG).is_file():
            raise CheckpointError(f"{base_name!r} is itself an adapter.")
        base = open_place(found_base)
    except CheckpointError as error:
        raise CheckpointError(f"The base of the adapter {name!r} cannot be opened: {error}") from error
    if not merge:
        return replace(base, name=name, adapter=folder)
    merged = cache(partial(_merged_values, base, folder))
    tensors = {one: replace(header, start=None, values=partial(_value, merged, header)) for one, header in base.tensors.items()}
    return replace(base, name=name, tensors=tensors, origin=folder, finish=partial(_merge, folder=folder))


def check_adapter(adapter: Path, architecture: Architecture, skeleton: nn.Module) -> None:
    """Refuse an adapter that the result cannot carry.

    Args:
        adapter: its folder; on the Hub, its weights may not have been downloaded, and nothing is checked then.
        architecture, skeleton: of the result.

    Raises:
        CheckpointError: it holds a position table, which has the old length, or nothing in it belongs to a module of the result.
    """
    if not (adapter / WEIGHTS).is_file():
        return
    names = list(read_headers(adapter / WEIGHTS))
    tables = [name for name in names if architecture.family.table(name) is not None]
    if tables:
        raise CheckpointError(f"The adapter holds the position table {tables[0]!r}, which has the old length; add --merge-adapter.")
    modules = {name for name, _ in skeleton.named_modules() if name}
    prefix = f"{getattr(skeleton, 'base_model_prefix', '')}."
    modules |= {f"{prefix}{name}" for name in modules} | {name.removeprefix(prefix) for name in modules}
    if not any(set(_parents(name.removeprefix(PEFT_PREFIX))) & modules for name in names):
        raise CheckpointError(f"The adapter {str(adapter)!r} belongs to another base: this one has no module for {names[0]!r}.")


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


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
    shutil.copyfile(adapter / WEIGHTS, folder / ADAPTER_FOLDER / WEIGHTS)
    return [f"{ADAPTER_FOLDER}/{name}" for name in (ADAPTER_CONFIG, WEIGHTS)]


def _value(merged: Any, header: TensorHeader) -> Tensor:
    values: Mapping[str, Tensor] = merged()
    if header.name not in values:
        raise CheckpointError(
            f"The base's tensor {header.name!r} has another name in transformers' own model, so that the adapter cannot be merged;"
            " load the base with transformers and save it again first."
        )
    return values[header.name].to(header.torch_dtype).contiguous()


def _merged_values(base: Source, folder: Path) -> Mapping[str, Tensor]:
    import transformers

    class_name = (base.config.get("architectures") or ["AutoModel"])[0]
    model = getattr(transformers, class_name).from_pretrained(base.folder, dtype="auto", local_files_only=True, **base.loading)
    return _merge(model, folder=folder).state_dict()


def _merge(model: nn.Module, *, folder: Path) -> nn.Module:
    """The model with the adapter in its own weights."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise CheckpointError("Adapters are merged with the peft package: pip install 'hf-longattn[train]'.") from error
    foreign = _foreign(model, folder)
    if foreign:
        raise CheckpointError(
            f"The adapter brings {foreign!r}, which its base does not have (a head of its own?); convert it without --merge-adapter."
        )
    try:
        return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (ValueError, RuntimeError, NotImplementedError, AttributeError) as error:
        raise CheckpointError(f"peft cannot merge the adapter {str(folder)!r}: {' '.join(str(error).split())[:300]}") from error


def _foreign(model: nn.Module, folder: Path) -> str | None:
    """A module that the adapter replaces and the model lacks."""
    saved = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("modules_to_save") or []
    present = {part for name, _ in model.named_modules() for part in name.split(".")}
    return next((name for name in saved if name not in present), None)
