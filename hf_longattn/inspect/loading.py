"""Load the checkpoint whose attention is watched."""

from __future__ import annotations

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
from ..conversion.sources import Source, open_source, refuse_quantised
from ..inputs.common.base import kind_of
from ..loading import loading_errors
from ..modeling.family.definition import family_in, model_name
from ..reading import is_long
from .watching import has_mechanisms


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A model to watch, in fp32 unless it was given in memory.

    name, class_name: of the checkpoint, or of a model in memory. is_long: whether it has mechanisms.
    folder: with its tokenizer or processor; ``None`` for a model in memory.
    """

    model: Any
    name: str
    class_name: str
    is_long: bool
    folder: Path | None = None


def load_to_watch(
    model: str | Path | nn.Module, *, device: str | None = None, revision: str | None = None, token: str | bool | None = None
) -> LoadedCheckpoint:  # fmt: skip
    """Load a checkpoint as it is. Where only Long classes are watched (sound), it is loaded as that, with its base's attention.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or is quantised.
        OptionError: there is no such device.
    """
    if isinstance(model, nn.Module):
        return LoadedCheckpoint(model, model_name(model), type(model).__name__, has_mechanisms(model))
    target = chosen_device(device)
    source = open_source(model, revision=revision, token=token)
    refuse_quantised(source)
    family = family_in(source.config)
    if family is not None and kind_of(family).watched_as_long and not is_long(source.config):
        plan = plan_conversion(source, config=ConversionConfig(long_attention=LongAttentionConfig("full")))
        loaded, class_name = load_as_result(source, plan.architecture, plan.config), plan.architecture.source_class
    else:
        loaded = _load(source)
        class_name = type(loaded).__name__
    return LoadedCheckpoint(loaded.eval().to(target), str(model), class_name, is_long(source.config), source.folder)


def _load(source: Source) -> nn.Module:
    with loading_errors(source.name):
        return source.load(AutoModel, dtype=torch.float32)
