"""From a source's config to the long architecture that takes its weights, asked of the family registry."""

from __future__ import annotations

import importlib
from typing import Any

from ...errors import CheckpointError, in_a_line, nearest
from ...families.registry import FAMILIES, MODEL_NAME, Family
from ..adopters import Adopter, adopter_of, adopters
from ..sources.base import Source
from .base import Architecture
from .generic import generic_hint
from .unnamed import class_of_tensors

__all__ = ["find_architecture"]

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "vocab_size")


def find_architecture(source: Source) -> Architecture:
    """The family and classes for a source.

    Raises:
        CheckpointError: no model_type, unsupported or already converted, or a config that contradicts itself.
    """
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    model_type = source.config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(f"The config.json of {source.name!r} names no model_type; it was not saved by transformers.")
    if "long_attention" in source.config:
        raise CheckpointError(f"{source.name!r} is already a long checkpoint ({model_type}); convert the short one that it was made from.")
    adopter = adopter_of(source)
    if adopter is None and model_type not in FAMILIES:
        known = sorted({*FAMILIES, *(one.model_type for one in adopters())})
        raise CheckpointError(
            f"{source.name!r} is a {model_type!r} model, {generic_hint(source)}; Long classes have:"
            f" {', '.join(known)}.{nearest(model_type, known)}"
        )
    family = FAMILIES[model_type if adopter is None else adopter.family]
    try:
        adopted = None if adopter is None else adopter.read_config(dict(source.config))
        values = dict(source.config) if adopter is None else _without_names(adopter.config_values(adopted))
        config = family.base_config_class.from_dict(values)
    except Exception as error:  # the config classes raise what their validators happen to raise
        raise CheckpointError(f"The config.json of {source.name!r} is not valid for {model_type}: {in_a_line(error)}.") from error
    for name in SIZES:
        value = getattr(config, name, 1)
        if isinstance(value, int) and value < 1:
            raise CheckpointError(f"The config.json of {source.name!r} says {name}={value}, which must be at least 1.")
    named = source.config.get("architectures")
    if not named:
        named = [MODEL_MAPPING_NAMES[model_type] if adopter is not None else class_of_tensors(family, config, source.tensors)]
    source_class = named[0] if isinstance(named, list) and len(named) == 1 else None
    base_class = source_class if adopter is None or not isinstance(source_class, str) else adopter.base_class(source_class)
    if not isinstance(source_class, str) or base_class not in family.heads:
        raise CheckpointError(
            f"{source.name!r} is a {' and a '.join(map(str, named)) if isinstance(named, list) else repr(named)}, which has no long form;"
            f" the supported {model_type} classes are:"
            f" {', '.join(_supported(family, adopter, model_type))}."
        )
    return Architecture(family, config, source_class, family.heads[base_class], adopter, adopted)


def _supported(family: Family, adopter: Adopter | None, model_type: str) -> list[str]:
    """The source's model classes that have a long form."""
    if adopter is None:
        return list(family.heads)
    package = importlib.import_module(f"transformers.models.{model_type}")
    return [name for name in dir(package) if MODEL_NAME.search(name) and adopter.base_class(name) in family.heads]


def _without_names(values: dict[str, Any]) -> dict[str, Any]:
    """Config values without those that name the source itself."""
    return {name: value for name, value in values.items() if name not in ("model_type", "architectures")}
