"""A PEFT adapter. Its base is converted, and the adapter put beside the result or merged into it."""

from __future__ import annotations

import contextlib
import math
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...errors import CheckpointError, ExportError, check_extra, nearest
from ...loading import merge_adapter
from ...reading import NAMES, NATURAL, NUMBER, TEXT, TYPES, check_config, check_fields, named_class, read_json_object
from ..tensor_files import TensorHeader, read_headers, write_json
from .base import ResultInfo, Source, SourceFormat, SourceRequest, WrappedSource, open_request, register_source

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS, PICKLED_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"
ADAPTER_FOLDER = "adapter"
"""The folder's name in the result, for an adapter that is kept next to its base."""
PEFT_PREFIX = "base_model.model."
"""Prefix of the base's names in the names of an adapter's tensors."""


@dataclass(frozen=True)
class AdapterSource(WrappedSource):
    """A base with an adapter that is copied beside the result. It needs a Long class, since peft finds the base by its class."""

    adapter: Path = field(kw_only=True)

    needs_family = True

    def check_result(self, skeleton: nn.Module, is_position_table: Callable[[str], bool]) -> None:
        """Refuse an adapter that does not fit the result. It holds a position table of the old length, or none of the result's modules.

        Nothing is checked if the adapter's weights were not downloaded from the Hub.
        """
        super().check_result(skeleton, is_position_table)
        if not (self.adapter / ADAPTER_WEIGHTS).is_file():
            return
        names = list(read_headers(self.adapter / ADAPTER_WEIGHTS))
        table = next((name for name in names if is_position_table(name)), None)
        if table is not None:
            raise CheckpointError(f"The adapter holds the position table {table!r}, which has the old length; add --merge-adapter.")
        modules = {name for name, _ in skeleton.named_modules() if name}
        prefix = f"{getattr(skeleton, 'base_model_prefix', '')}."
        modules |= {f"{prefix}{name}" for name in modules} | {name.removeprefix(prefix) for name in modules}
        if not any(set(_parents(name.removeprefix(PEFT_PREFIX))) & modules for name in names):
            raise CheckpointError(f"The adapter {str(self.adapter)!r} belongs to another base: this one has no module for {names[0]!r}.")

    def write_beside(self, folder: Path, result: ResultInfo) -> list[str]:
        """Copy the adapter into a folder of the result, with the result as its base."""
        written = super().write_beside(folder, result)
        config = read_json_object(self.adapter / ADAPTER_CONFIG)
        config["base_model_name_or_path"] = str(result.destination)
        config["revision"] = None
        if config.get("auto_mapping"):
            config["auto_mapping"] = {"base_model_class": result.class_name, "parent_library": result.module}
        (folder / ADAPTER_FOLDER).mkdir()
        write_json(folder / ADAPTER_FOLDER / ADAPTER_CONFIG, config)
        shutil.copyfile(self.adapter / ADAPTER_WEIGHTS, folder / ADAPTER_FOLDER / ADAPTER_WEIGHTS)
        return [*written, *(f"{ADAPTER_FOLDER}/{name}" for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS))]

    def tensors_beside(self) -> Mapping[str, TensorHeader]:
        adapter = read_headers(self.adapter / ADAPTER_WEIGHTS)
        return {**super().tensors_beside(), **{f"{name} (of the adapter)": header for name, header in adapter.items()}}


def with_kept_adapter(source: Source) -> Source:
    """The source with the adapter beside its weights, if a conversion kept one there."""
    adapter = source.folder / ADAPTER_FOLDER
    if isinstance(source, AdapterSource) or not (adapter / ADAPTER_CONFIG).is_file():
        return source
    config = read_json_object(adapter / ADAPTER_CONFIG)
    _check_config(config, adapter / ADAPTER_CONFIG)
    _check_tensors(config, adapter)
    return AdapterSource.around(source, paths=(*source.paths, adapter), adapter=adapter)


def refuse_adapter(source: Source) -> None:
    """Refuse to write weights without the adapter that belongs to them.

    Raises:
        ExportError: there is an adapter that is not merged.
    """
    adapted = with_kept_adapter(source)
    if isinstance(adapted, AdapterSource):
        raise ExportError(
            f"The result would leave out the adapter in {str(adapted.adapter)!r}; convert with --merge-adapter, or merge it with peft "
            "(merge_and_unload) and save the model."
        )


@dataclass(frozen=True)
class MergedSource(WrappedSource):
    """A base with an adapter that is added to its weights on reading. This loads the whole model with peft."""

    adapter: Path = field(kw_only=True)

    merges_adapter = True

    def finish(self, model: nn.Module) -> nn.Module:
        return _merge(super().finish(model), self.adapter)


@register_source("peft")
class Peft(SourceFormat):
    """A folder with an adapter_config.json."""

    priority = 80
    markers = (ADAPTER_CONFIG,)

    def open(self, request: SourceRequest) -> Source:
        if request.for_adapter:
            raise CheckpointError(f"{request.name!r} is itself an adapter; give one whose base is a model.")
        name, revision = _base_of(request)
        try:
            path = Path(name).expanduser()
            base = open_request(replace(request, name=name, path=path, revision=revision, remote_headers=None, for_adapter=True))
        except CheckpointError as error:
            raise CheckpointError(f"The base of the adapter {request.name!r} cannot be opened: {error}") from error
        known = {"name": request.name, "paths": (*base.paths, request.path)}
        if not request.merge_adapter:
            return AdapterSource.around(base, **known, adapter=request.path)
        check_extra("peft")  # merging needs peft, after the base was loaded
        check_config(base.config, base.name)
        merged = cache(partial(_merged_values, base, request.path))
        tensors = {name: replace(header, start=None, values=partial(_value, merged, header)) for name, header in base.tensors.items()}
        return MergedSource.around(base, **known, tensors=tensors, adapter=request.path)


def _base_of(request: SourceRequest) -> tuple[str, str | None]:
    """The name of the base that an adapter was trained on, and its revision.

    Raises:
        CheckpointError: no base named, or no safetensors weights.
    """
    folder, downloaded = request.path, request.remote_headers is None
    config = read_json_object(folder / ADAPTER_CONFIG)
    base_name = config.get("base_model_name_or_path")
    if not isinstance(base_name, str) or not base_name:
        raise CheckpointError(
            f"{str(folder / ADAPTER_CONFIG)!r} names no base_model_name_or_path; write the folder or Hub name of its base there."
        )
    if not (folder / ADAPTER_WEIGHTS).is_file() and downloaded:
        weights = f"only {PICKLED_WEIGHTS!r}: load it with peft and save it again" if (folder / PICKLED_WEIGHTS).is_file() else "no weights"
        raise CheckpointError(f"The adapter {request.name!r} has {weights}; expected {ADAPTER_WEIGHTS}.")
    _check_config(config, folder / ADAPTER_CONFIG)
    if downloaded:
        _check_tensors(config, folder)
    return base_name, config.get("revision")


FIELDS = {
    **dict.fromkeys(("peft_type", "task_type", "revision"), TEXT),
    "r": NATURAL,
    "lora_alpha": NUMBER,
    **dict.fromkeys(("target_modules", "exclude_modules"), NAMES),
    "modules_to_save": "a list of text",
    **dict.fromkeys(("rank_pattern", "alpha_pattern", "auto_mapping"), "an object"),
}
"""Fields of an adapter's config, and the types that peft takes besides ``None``."""
MODULES = ("target_modules", "exclude_modules", "modules_to_save", "rank_pattern", "alpha_pattern")
"""Fields that name modules."""
NO_MODULE = re.compile(r"[/\x00-\x1f]|\.\.|^\.|^\\\\|^~")
"""Matches parts of paths that no name of a module contains."""
LORA_A, LORA = re.compile(r"\.lora_A(\.\w+)?(\.weight)?$"), "LORA"
"""Matches the end of names of tensors whose first axis is the rank, and the adapter method that uses them."""


def _check_config(config: Mapping[str, Any], file: Path) -> None:
    """Refuse a config that would make peft fail, now or when somebody loads the result.

    Raises:
        CheckpointError: a field is invalid. The message says what it must be.
    """
    check_fields(config, FIELDS, repr(str(file)))
    infinite = next((key for key, value in config.items() if _not_finite(value)), None)
    if infinite is not None:
        raise CheckpointError(f"{str(file)!r} says {infinite}={config[infinite]!r:.80}, which must be finite; save the adapter again.")
    for key in MODULES:
        names = config.get(key) if isinstance(config.get(key), dict | list) else ()
        path = next((name for name in names or () if NO_MODULE.search(name)), None)
        if path is not None:
            raise CheckpointError(f"{str(file)!r} says {key}={path!r:.80}, which is not the name of a module; save the adapter again.")
    for key in ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"):
        value = config.get(key)
        patterns = [value] if isinstance(value, str) else value if isinstance(value, dict) else []
        for pattern in patterns:
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                raise CheckpointError(
                    f"{str(file)!r} says {key}={pattern!r:.80}, which is not a regular expression ({error}); correct it."
                ) from error
    for rank in (config.get("r"), *(config.get("rank_pattern") or {}).values()):
        if rank is not None and not (TYPES[NATURAL](rank) and rank >= 1):
            raise CheckpointError(f"{str(file)!r} says that a rank is {rank!r:.80}, which must be a whole number of at least 1.")
    if not config.get("peft_type"):
        raise CheckpointError(f"{str(file)!r} names no peft_type, for example LORA; was it saved by peft?")
    with contextlib.suppress(ImportError):  # without peft, an adapter is copied without this check
        from peft import PeftType

        if config["peft_type"] not in PeftType.__members__:
            known = ", ".join(PeftType.__members__)
            name = config["peft_type"]
            raise CheckpointError(f"{str(file)!r} says peft_type={name!r:.80}; peft knows {known}.{nearest(name, PeftType.__members__)}")


def _not_finite(value: Any) -> bool:
    """Whether a value of a config is, or holds, a number that is not finite."""
    if isinstance(value, dict | list):
        return any(map(_not_finite, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and not math.isfinite(value)


def _check_tensors(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse weights that do not fit the config.

    Raises:
        CheckpointError: no tensors, names that no module has, or other ranks.
    """
    file = folder / ADAPTER_WEIGHTS
    tensors = read_headers(file)
    if not tensors:
        raise CheckpointError(f"{str(file)!r} holds no tensors; save the adapter again.")
    path = next((name for name in tensors if NO_MODULE.search(name)), None)
    if path is not None:
        raise CheckpointError(f"{str(file)!r} holds the tensor {path!r:.80}, which is in no module; save the adapter again.")
    if config.get("peft_type") != LORA:
        return
    ranks = {config.get("r", 8), *(config.get("rank_pattern") or {}).values()}
    factors = [factor for name, factor in tensors.items() if LORA_A.search(name)]
    # a tensor of experts holds several factors
    wrong = next((factor for factor in factors if all(factor.shape[0] % rank for rank in ranks)), None)
    if wrong is not None:
        raise CheckpointError(
            f"{str(folder / ADAPTER_CONFIG)!r} says r={config.get('r', 8)}, but {wrong.name!r} has the rank {wrong.shape[0]}; save the "
            "adapter again."
        )


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _value(merged: Callable[[], Mapping[str, Tensor]], header: TensorHeader) -> Tensor:
    values = merged()
    if header.name not in values:
        raise CheckpointError(
            f"The base's tensor {header.name!r} has another name in transformers' own model, so the adapter cannot be merged;"
            " load the base with transformers and save it again first."
        )
    return values[header.name].to(header.dtype).contiguous()


def _merged_values(base: Source, folder: Path) -> Mapping[str, Tensor]:
    import transformers

    class_name = named_class(base.config, "AutoModel")
    model_class: Any = getattr(transformers, class_name, None)
    if not hasattr(model_class, "from_pretrained"):
        raise CheckpointError(
            f"The base of {base.name!r} names the class {class_name!r}, which transformers does not have; "
            "correct architectures in its config.json."
        )
    model = base.load(model_class, dtype="auto")
    return _merge(model, folder).state_dict()


def _merge(model: nn.Module, folder: Path) -> nn.Module:
    """Add the adapter to the weights of the model."""
    foreign = _foreign(model, folder)
    if foreign:
        raise CheckpointError(
            f"The adapter brings {foreign!r}, which its base does not have (a new head?); convert it without --merge-adapter."
        )
    return merge_adapter(model, folder)


def _foreign(model: nn.Module, folder: Path) -> str | None:
    """Name of a module that the adapter brings and the model does not have. ``None`` if there is none."""
    saved = read_json_object(folder / ADAPTER_CONFIG).get("modules_to_save") or []  # usual heads, present or not
    present = {part for name, _ in model.named_modules() for part in name.split(".")}
    brought = {part for name in read_headers(folder / ADAPTER_WEIGHTS) for part in name.split(".")}
    return next((name for name in saved if name in brought - present), None)
