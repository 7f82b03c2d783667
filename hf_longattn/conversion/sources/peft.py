"""A PEFT adapter as a source: its base is converted, and the adapter put beside it or merged into it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...errors import CheckpointError, in_a_line, nearest
from ...reading import NAMES, NUMBER, TEXT, check_config, check_fields, named_class, read_json_object
from ..tensor_files import TensorHeader, read_headers
from .base import Place, Source

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS, PICKLED_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"


def base_of(place: Place) -> tuple[str, str | None]:
    """The name of the base that the adapter at a place was trained on, and its revision.

    Raises:
        CheckpointError: no base named, or no safetensors weights.
    """
    folder = place.folder
    config = read_json_object(folder / ADAPTER_CONFIG)
    base_name = config.get("base_model_name_or_path")
    if not isinstance(base_name, str) or not base_name:
        raise CheckpointError(
            f"{str(folder / ADAPTER_CONFIG)!r} names no base_model_name_or_path; write the folder or Hub name of its base there."
        )
    if not (folder / ADAPTER_WEIGHTS).is_file() and place.remote is None:
        found = f"only {PICKLED_WEIGHTS!r}: load it with peft and save it again" if (folder / PICKLED_WEIGHTS).is_file() else "no weights"
        raise CheckpointError(f"The adapter {place.name!r} has {found}; expected {ADAPTER_WEIGHTS}.")
    _check_config(config, folder / ADAPTER_CONFIG)
    if place.remote is None and not read_headers(folder / ADAPTER_WEIGHTS):
        raise CheckpointError(f"{str(folder / ADAPTER_WEIGHTS)!r} holds no tensors; save the adapter again.")
    return base_name, config.get("revision")


FIELDS = {
    **dict.fromkeys(("peft_type", "task_type", "revision"), TEXT),
    **dict.fromkeys(("r", "lora_alpha"), NUMBER),
    **dict.fromkeys(("target_modules", "exclude_modules"), NAMES),
    "modules_to_save": "a list of text",
    **dict.fromkeys(("rank_pattern", "alpha_pattern", "auto_mapping"), "an object"),
}
"""Fields of an adapter's config, and the types that peft takes besides ``None``."""


def _check_config(config: Mapping[str, Any], file: Path) -> None:
    """Refuse what would make peft fail, now or when somebody loads the result.

    Raises:
        CheckpointError: naming the field, and what it must be.
    """
    check_fields(config, FIELDS, repr(str(file)))
    for field in ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"):
        value = config.get(field)
        patterns = [value] if isinstance(value, str) else value if isinstance(value, dict) else []
        for pattern in patterns:
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                raise CheckpointError(
                    f"{str(file)!r} says {field}={pattern!r:.80}, which is not a regular expression ({error})."
                ) from error
    if not config.get("peft_type"):
        raise CheckpointError(f"{str(file)!r} names no peft_type, for example LORA; was it saved by peft?")
    with contextlib.suppress(ImportError):  # without peft, an adapter is carried along as it is
        from peft import PeftType

        if config["peft_type"] not in PeftType.__members__:
            known = ", ".join(PeftType.__members__)
            name = config["peft_type"]
            raise CheckpointError(f"{str(file)!r} says peft_type={name!r:.80}; peft knows {known}.{nearest(name, PeftType.__members__)}")


def with_adapter(base: Source, place: Place, *, merge: bool) -> Source:
    """A base with an adapter beside it or merged into its weights.

    Args:
        base: that the adapter was trained on.
        place: of the adapter.
        merge: add the adapter to the base's weights when they are read; that loads the whole model with peft.
    """
    if not merge:
        return replace(base, name=place.name, adapter=place.folder)
    check_config(base.config, base.name)
    merged = cache(partial(_merged_values, base, place.folder))
    tensors = {one: replace(header, start=None, values=partial(_value, merged, header)) for one, header in base.tensors.items()}
    return replace(base, name=place.name, tensors=tensors, origin=place.folder, finish=partial(_merge, folder=place.folder))


def _value(merged: Callable[[], Mapping[str, Tensor]], header: TensorHeader) -> Tensor:
    values = merged()
    if header.name not in values:
        raise CheckpointError(
            f"The base's tensor {header.name!r} has another name in transformers' own model, so that the adapter cannot be merged;"
            " load the base with transformers and save it again first."
        )
    return values[header.name].to(header.torch_dtype).contiguous()


def _merged_values(base: Source, folder: Path) -> Mapping[str, Tensor]:
    import transformers

    class_name = named_class(base.config, "AutoModel")
    model_class: Any = getattr(transformers, class_name, None)
    if not hasattr(model_class, "from_pretrained"):
        raise CheckpointError(f"The base of {base.name!r} names the class {class_name!r}, which transformers does not have.")
    try:
        model = model_class.from_pretrained(base.folder, dtype="auto", local_files_only=True, **base.loading)
    except Exception as error:  # transformers raises what its constructors happen to raise
        raise CheckpointError(f"transformers cannot load {str(base.folder)!r}: {in_a_line(error)}.") from error
    return _merge(model, folder=folder).state_dict()


def _merge(model: nn.Module, *, folder: Path) -> nn.Module:
    """The model with the adapter in its own weights."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise CheckpointError("Adapters are merged with the peft package: pip install peft.") from error
    foreign = _foreign(model, folder)
    if foreign:
        raise CheckpointError(
            f"The adapter brings {foreign!r}, which its base does not have (a head of its own?); convert it without --merge-adapter."
        )
    try:
        return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except Exception as error:  # peft raises what its tuners happen to raise
        raise CheckpointError(f"peft cannot merge the adapter {str(folder)!r}: {in_a_line(error)}.") from error


def _foreign(model: nn.Module, folder: Path) -> str | None:
    """A module that the adapter replaces and the model lacks."""
    saved = read_json_object(folder / ADAPTER_CONFIG).get("modules_to_save") or []  # peft names the usual heads, whether there or not
    present = {part for name, _ in model.named_modules() for part in name.split(".")}
    brought = {part for name in read_headers(folder / ADAPTER_WEIGHTS) for part in name.split(".")}
    return next((name for name in saved if name in brought - present), None)
