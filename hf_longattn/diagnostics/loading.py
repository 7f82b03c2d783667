"""Load the checkpoint that is diagnosed: as it is, or with more positions, as a conversion would give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from ..configuration import LongAttentionConfig
from ..conversion import plan_conversion
from ..conversion.config import ConversionConfig
from ..conversion.model_loading import chosen_device, load_as_result
from ..conversion.sources.base import Source, open_source
from ..conversion.sources.quantised import refuse_quantised
from ..errors import LengthError, OptionError
from ..hub_errors import HUB_ID
from ..inputs.text import load_tokenizer
from ..loading import loading_errors
from ..modeling.family.definition import FAMILIES
from ..modeling.generic import load_generic
from ..naming import CONVERSION_REPORT
from ..reading import is_generic, read_json_object


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint for a diagnosis.

    model: in fp32. tokenizer: ``None`` if the checkpoint has none.
    source: as it was opened.
    positions: how positions were extended while it was loaded; ``None`` if they were not.
    trained_length: tokens that it read before; ``None`` if they were not extended.
    """

    model: nn.Module
    tokenizer: Any | None
    source: Source
    positions: str | None = None
    trained_length: int | None = None


def load_for_diagnosis(
    name: str | Path,
    lengths: Sequence[int] | None,
    *,
    extend: str | None = None,
    mechanism: Mapping[str, Any] | None = None,
    device: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> LoadedCheckpoint:
    """A checkpoint as it is, or with more positions.

    Args:
        name: a folder or a Hub repository id.
        lengths: that will be read; with ``extend``, positions are extended to the longest.
        extend: ``positions`` of a conversion.
        mechanism: what the layers run while positions are extended, such as ``{"mechanism": "window", "window": "512"}``; by default what
            a conversion would make.
    Raises:
        CheckpointError: it cannot be loaded, or is quantised.
        OptionError: ``mechanism`` without ``extend``, or no such device.
        PositionError, LengthError: positions cannot be extended so.
    """
    if mechanism is not None and extend is None:
        raise OptionError("A mechanism is chosen for a model whose positions are extended; add --extend tile, or leave --mechanism out.")
    if extend is not None and lengths is None:
        raise OptionError("Positions are extended to the longest length; give for example --lengths 512,2K,8K.")
    target = chosen_device(device)
    source = open_source(name, revision=revision, token=token)
    refuse_quantised(source)
    if extend is None:
        return LoadedCheckpoint(_load(source).eval().to(target), load_tokenizer(source.folder), source)
    if "long_attention" in source.config:
        raise LengthError(f"{source.name!r} is a long model already; leave --extend out, or give the checkpoint that it was made from.")
    chosen = None if mechanism is None else LongAttentionConfig.from_dict(mechanism)
    plan = plan_conversion(source, config=ConversionConfig(max_length=max(lengths or ()), positions=extend, long_attention=chosen))
    model = load_as_result(source, plan.architecture, plan.config)
    return LoadedCheckpoint(model.eval().to(target), load_tokenizer(source.folder), source, plan.positions, plan.old_length)


def known_checkpoint(name: object) -> str | None:
    """The name of a checkpoint if it exists here or can be one of the Hub; else ``None``."""
    return name if isinstance(name, str) and (Path(name).is_dir() or HUB_ID.fullmatch(name) is not None) else None


def converted_from(folder: Path) -> str | None:
    """The name of the checkpoint that a long one was made from, from its report, if it is known here."""
    report = folder / CONVERSION_REPORT
    plan = read_json_object(report).get("plan") if report.is_file() else None
    return known_checkpoint(plan.get("source")) if isinstance(plan, dict) else None


def _load(source: Source) -> nn.Module:
    with loading_errors(source.name):
        if is_generic(source.config):
            return load_generic(source.folder, dtype=torch.float32)
        family = FAMILIES.get(str(source.config.get("model_type")))
        model_class: Any = AutoModel
        if family is not None and family.base_classes is not None:  # transformers' class cannot be built
            model_class = family.base_class(family.base_model_name)
        return source.finish(source.load(model_class, dtype=torch.float32))


def length_error(name: str, length: int, limit: int) -> LengthError:
    """The refusal of a length that the model's positions do not reach."""
    return LengthError(
        f"{name!r} ends at {limit:,} tokens, but a length of {length:,} was given; add --extend tile (rotary positions: --extend "
        f"rope:yarn), or give lengths of at most {limit}."
    )
