"""From a source's config to the long architecture that takes its weights, asked of the family registry."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..configuration import LongAttentionConfig
from ..errors import CheckpointError, LongAttentionError, nearest
from ..families.registry import FAMILIES, Family
from ..mechanisms import Mechanism
from .source import Source

__all__ = ["Architecture", "attached_mechanisms", "find_architecture", "table_offset"]


@dataclass(frozen=True)
class Architecture:
    """The family of a source and the class of its weights, before and after."""

    family: Family
    source_config: Any  # the base config, as transformers reads it
    source_class: str  # "BertForQuestionAnswering"
    long_class: str  # "LongBertForQuestionAnswering"

    def long_config(self, attention: LongAttentionConfig, rows: int | None, rope: dict[str, Any] | None, rule: str) -> Any:
        """The config of the result: everything of the source's, the attention, and the new positions."""
        values = self.source_config.to_dict()
        for name in ("model_type", "architectures", "transformers_version", "_name_or_path"):
            values.pop(name, None)
        config = self.family.config_class.from_dict({**values, "long_attention": attention.to_dict()})
        if rows is not None:
            config.max_position_embeddings = rows
        if rope is None:
            config.position_extension = rule
        else:
            config.rope_parameters = dict(rope)
        config.architectures = [self.long_class]
        return config

    @cached_property
    def model_class(self) -> type[nn.Module]:
        return self.family.model_class(self.long_class)

    def skeleton(self, config: Any) -> nn.Module:
        """The long model without storage, for its names and shapes.

        Raises:
            CheckpointError: the config contradicts itself, so that no model can be made from it.
        """
        try:
            with torch.device("meta"):
                return self.model_class(config)
        except LongAttentionError:
            raise
        except Exception as error:  # the constructors raise what they happen to raise
            raise CheckpointError(f"The source's config does not make a {self.source_class}: {_line(error)}.") from error


def find_architecture(source: Source) -> Architecture:
    """The family and classes for a source.

    Raises:
        CheckpointError: no model_type, unsupported or already converted, quantised, or a config that contradicts itself.
    """
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    model_type = source.config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(f"The config.json of {source.name!r} names no model_type; it was not saved by transformers.")
    if "long_attention" in source.config:
        raise CheckpointError(f"{source.name!r} is already a long checkpoint ({model_type}); convert the short one that it was made from.")
    if source.config.get("quantization_config"):
        raise CheckpointError(f"{source.name!r} holds quantised weights; convert the unquantised checkpoint instead.")
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"{source.name!r} is a {model_type!r} model, which is not supported; the supported ones are:"
            f" {', '.join(sorted(FAMILIES))}.{nearest(model_type, FAMILIES)}"
        )
    family = FAMILIES[model_type]
    try:
        config = family.base_config_class.from_dict(dict(source.config))
    except Exception as error:  # the config classes raise what their validators happen to raise
        raise CheckpointError(f"The config.json of {source.name!r} is not valid for {model_type}: {_line(error)}.") from error
    named = source.config.get("architectures") or [MODEL_MAPPING_NAMES[model_type]]
    if not isinstance(named, list) or len(named) != 1 or named[0] not in family.heads:
        raise CheckpointError(
            f"{source.name!r} is a {named!r}, which has no long form; the supported {model_type} classes are: {', '.join(family.heads)}."
        )
    return Architecture(family, config, named[0], family.heads[named[0]])


def table_offset(family: Family, name: str) -> int | None:
    """How many special rows the position table called `name` begins with, or None when it is another tensor."""
    for table in family.position_tables:
        if re.search(table.pattern, name):
            return table.offset
    return None


def attached_mechanisms(model: nn.Module) -> dict[str, Mechanism]:
    """Module name -> mechanism, in layer order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Mechanism)}


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
