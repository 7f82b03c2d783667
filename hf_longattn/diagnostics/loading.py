"""Load the checkpoint for a diagnosis, as it is or with positions extended as in a conversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from ..configuration import LongAttentionConfig
from ..constants import CONVERSION_REPORT
from ..conversion import plan_conversion
from ..conversion.config import ConversionConfig
from ..conversion.model_loading import chosen_device, load_as_result
from ..conversion.plan import ConversionPlan
from ..conversion.sources.base import Source, open_source
from ..conversion.sources.folder import refuse_quantised
from ..errors import LengthError, OptionError
from ..hub_errors import HUB_ID
from ..loading import loading_errors
from ..modeling.family.definition import FAMILIES, model_name
from ..reading import read_json_object


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A model for a diagnosis, in fp32 unless it was given in memory.

    name: of the checkpoint, or of a model in memory. source: the opened checkpoint; ``None`` for a model in memory.
    plan: the conversion by whose class and positions it was loaded; ``None`` if it was loaded as it is.
    """

    model: Any
    name: str
    source: Source | None = None
    plan: ConversionPlan | None = None

    @property
    def folder(self) -> Path:
        """The checkpoint's folder; of a model in memory, the one that it was loaded from."""
        return Path(str(getattr(self.model.config, "name_or_path", ""))) if self.source is None else self.source.folder

    def to_convert(self, is_long: bool) -> str | None:
        """Name of the checkpoint to convert, as in a command; of a long model, of the one that it was made from. ``None`` if unknown."""
        if self.source is None and not getattr(self.model.config, "name_or_path", ""):
            return None
        if is_long:
            return converted_from(self.folder)
        return known_checkpoint(str(self.folder)) if self.source is None else self.source.name


def load_for_diagnosis(
    model: str | Path | nn.Module,
    lengths: Sequence[int] | None = None,
    *,
    extend: str | None = None,
    mechanism: Mapping[str, Any] | None = None,
    device: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> LoadedCheckpoint:
    """Load a checkpoint as it is, or with extended positions. A model in memory is left as it is.

    Args:
        model: a folder, a Hub repository id, or a model in memory.
        lengths: lengths of the diagnosis; with ``extend``, positions are extended to the longest.
        extend: how positions are extended, as ``positions`` of a conversion; ``None``: not at all.
        mechanism: with ``extend``, the mechanism of the layers, such as ``{"mechanism": "window", "window": "512"}``; by default, a
            conversion's choice.
    Raises:
        CheckpointError: the checkpoint cannot be loaded, or is quantised.
        OptionError: ``mechanism`` without ``extend``, ``extend`` without ``lengths`` or for a model in memory, or no such device.
        PositionError, LengthError: positions cannot be extended like this.
    """
    if isinstance(model, nn.Module):
        if extend is not None or mechanism is not None:
            raise OptionError("Positions are extended while a checkpoint is loaded; give its name instead of a model, or leave extend out.")
        return LoadedCheckpoint(model, model_name(model))
    if mechanism is not None and extend is None:
        raise OptionError("A mechanism is chosen for a model whose positions are extended; add --extend tile, or leave --mechanism out.")
    if extend is not None and lengths is None:
        raise OptionError("Positions are extended to the longest length; give for example --lengths 512,2K,8K.")
    target = chosen_device(device)
    source = open_source(model, revision=revision, token=token)
    refuse_quantised(source)
    if extend is None:
        return LoadedCheckpoint(_load(source).eval().to(target), str(model), source)
    if "long_attention" in source.config:
        raise LengthError(f"{source.name!r} is a long model already; leave --extend out, or give the checkpoint that it was made from.")
    chosen = None if mechanism is None else LongAttentionConfig.from_dict(mechanism)
    settings = ConversionConfig(max_length=max(lengths or ()), positions=extend, long_attention=chosen)
    return load_planned(source, plan_conversion(source, config=settings), device, str(model))


def load_planned(source: Source, plan: ConversionPlan, device: str | None, name: str) -> LoadedCheckpoint:
    """Load a checkpoint into the class of a conversion's result."""
    model = load_as_result(source, plan.architecture, plan.config).eval().to(chosen_device(device))
    return LoadedCheckpoint(model, name, source, plan)


def known_checkpoint(name: object) -> str | None:
    """``name`` if it is an existing folder or has the form of a Hub repository id; else ``None``."""
    return name if isinstance(name, str) and (Path(name).is_dir() or HUB_ID.fullmatch(name) is not None) else None


def converted_from(folder: Path) -> str | None:
    """Source of a long checkpoint by its conversion report; ``None`` unless it is a folder here or a Hub repository id."""
    report = folder / CONVERSION_REPORT
    plan = read_json_object(report).get("plan") if report.is_file() else None
    return known_checkpoint(plan.get("source")) if isinstance(plan, dict) else None


def _load(source: Source) -> nn.Module:
    with loading_errors(source.name):
        family = FAMILIES.get(str(source.config.get("model_type")))
        model_class: Any = AutoModel
        if family is not None and family.base_classes is not None:  # transformers' class cannot be built
            model_class = family.base_class(family.base_model_name)
        return source.finish(source.load(model_class, dtype=torch.float32))


def length_error(name: str, length: int, limit: int) -> LengthError:
    """The error for a length beyond the model's positions."""
    return LengthError(
        f"{name!r} ends at {limit:,} tokens, but a length of {length:,} was given; add --extend tile (rotary positions: --extend "
        f"rope:yarn), or give lengths of at most {limit}."
    )
