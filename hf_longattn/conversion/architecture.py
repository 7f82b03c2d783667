"""From a source's config to the long architecture that takes its weights, asked of the family registry."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..configuration import LongAttentionConfig
from ..errors import CheckpointError, LongAttentionError, in_a_line, nearest
from ..families.registry import FAMILIES, MODEL_NAME, Family
from ..mechanisms import Mechanism
from ..positions import DROPPED, STRATEGIES
from .adopters import Adopter, adopter_of, adopters
from .source import Source

__all__ = ["Architecture", "attached_mechanisms", "find_architecture"]

NAMES = ("model_type", "architectures", "transformers_version", "_name_or_path", "auto_map")
"""Fields of a config that say whose it is."""
OWN_FIELDS = ("long_attention", "decoder_long_attention", "position_extension", "max_decoder_position_embeddings", "extended_from")
"""Fields that only a Long config has."""
LAYERS = re.compile(r"(layers?|groups|group_num)$")
"""Fields of a config that count parts of which each is built."""
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "vocab_size")
MOST_LABELS = 10_000_000


@dataclass(frozen=True)
class Architecture:
    """The family of a source and the class of its weights, before and after."""

    family: Family
    source_config: Any  # the family's base config with the source's values
    source_class: str  # "BertForQuestionAnswering"
    long_class: str  # "LongBertForQuestionAnswering"
    adopter: Adopter | None = None  # for a source that is no plain model of the family
    adopted_config: Any = None  # the source's own config then

    def adopted_attention(self) -> LongAttentionConfig | None:
        """The attention that does what an adopted source does; ``None`` for a plain model."""
        return None if self.adopter is None else self.adopter.attention(self.adopted_config, self.source_class)

    @property
    def encoder_decoder(self) -> bool:
        """Whether the source is an encoder and a decoder, and not the decoder of such a base alone."""
        return self.family.two_stacks and not self.long_class.endswith("ForCausalLM")

    @property
    def decoder_reads_text(self) -> bool:
        """Whether the head looks at the decoder's output for every token of the text, so that the decoder is as long as the encoder."""
        return self.encoder_decoder and self.long_class.endswith(("ForQuestionAnswering", "ForSequenceClassification"))

    def long_config(
        self,
        attention: LongAttentionConfig,
        lengths: dict[str, int],
        rope: dict[str, Any] | None,
        rule: str,
        decoder_attention: LongAttentionConfig | None = None,
    ) -> Any:
        """The config of the result: everything of the source's, the attention, and the new positions.

        Args:
            attention, decoder_attention: of the model, and of its decoder beside an encoder.
            lengths: field of the config -> its new value.
            rope: rotary parameters; ``None`` for position tables.
            rule: how position tables are extended.
        """
        values = self.source_config.to_dict()
        for name in NAMES:
            values.pop(name, None)
        if decoder_attention is not None:
            values["decoder_long_attention"] = decoder_attention.to_dict()
        try:
            config = self.family.config_class.from_dict({**values, "long_attention": attention.to_dict()})
        except LongAttentionError:
            raise
        except Exception as error:  # the config classes raise what their validators happen to raise
            raise CheckpointError(f"The source's config does not make a {self.long_class}: {in_a_line(error)}.") from error
        for field, value in lengths.items():
            setattr(config, field, value)
        if rope is None:
            config.position_extension = rule if rule in STRATEGIES else "none" if rule in DROPPED else "tile"
        else:
            config.rope_parameters = dict(rope)
            trained = rope.get("original_max_position_embeddings")
            if trained is not None and hasattr(config, "original_max_position_embeddings"):
                config.original_max_position_embeddings = trained  # Phi-3 has it here as well, and this one is believed
        config.architectures = [self.long_class]
        result = config.to_dict()
        config.extended_from = {
            name: value for name, value in values.items() if name not in (*OWN_FIELDS, "dtype") and result.get(name, ...) != value
        }
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
            raise CheckpointError(f"The source's config does not make a {self.source_class}: {in_a_line(error)}.") from error


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
    _check_counts(source)
    adopter = adopter_of(source)
    if adopter is None and model_type not in FAMILIES:
        from .generic import generic_hint  # which builds on this module

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
    named = source.config.get("architectures") or [MODEL_MAPPING_NAMES[model_type]]
    source_class = named[0] if isinstance(named, list) and len(named) == 1 else None
    base_class = source_class if adopter is None or not isinstance(source_class, str) else adopter.base_class(source_class)
    if not isinstance(source_class, str) or base_class not in family.heads:
        raise CheckpointError(
            f"{source.name!r} is a {named!r}, which has no long form; the supported {model_type} classes are:"
            f" {', '.join(_supported(family, adopter, model_type))}."
        )
    return Architecture(family, config, source_class, family.heads[base_class], adopter, adopted)


def _check_counts(source: Source) -> None:
    """Refuse counts by which a model of any size could be asked for before a tensor is looked at."""
    for name, value in source.config.items():
        limit = MOST_LABELS if name == "num_labels" else max(1000, len(source.tensors)) if LAYERS.search(name) else None
        if limit is not None and isinstance(value, int | float) and not value <= limit:
            raise CheckpointError(
                f"The config.json of {source.name!r} says {name}={value}, which its {len(source.tensors)} tensors cannot be."
            )


def _supported(family: Family, adopter: Adopter | None, model_type: str) -> list[str]:
    """The source's model classes that have a long form."""
    if adopter is None:
        return list(family.heads)
    package = importlib.import_module(f"transformers.models.{model_type}")
    return [name for name in dir(package) if MODEL_NAME.search(name) and adopter.base_class(name) in family.heads]


def _without_names(values: dict[str, Any]) -> dict[str, Any]:
    """Config values without those that name the source itself."""
    return {name: value for name, value in values.items() if name not in ("model_type", "architectures")}


def attached_mechanisms(model: nn.Module) -> dict[str, Mechanism]:
    """Module name -> mechanism, in layer order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Mechanism)}
