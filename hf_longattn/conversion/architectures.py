"""Model classes of a source, its own and the Long class, with configs and models on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from ..configuration import LongAttentionConfig
from ..errors import BackendError, CheckpointError, checkpoint_errors, nearest
from ..files import FORMAT_FIELD, is_long, named_class
from ..inputs.kind import InputKind, kind_of
from ..mechanisms import Mechanism
from ..modeling.attach.memory_tokens import MemoryTokens
from ..modeling.classes import check_interface
from ..modeling.family.definition import FAMILIES, Family, stored_facts
from ..modeling.family.registration import MULTIMODAL_TYPE
from ..modeling.family.sliding_window import with_base_windows
from ..modeling.generic import family_in, plain_family
from ..modeling.inference.pruning import KEPT_HEADS
from ..positions.rope import RopePlan
from ..positions.tables import DROPPED, extends_learned
from .adopt import ADOPTIONS, Adoption, adoption_of
from .sources import Source

NAMES = ("model_type", "architectures", "transformers_version", "_name_or_path", "auto_map")
"""Fields of a config that identify its model."""
OWN_FIELDS = (
    FORMAT_FIELD,
    "long_attention",
    "decoder_long_attention",
    "position_extension",
    "question_separator_id",
    "global_token_ids",
    "max_decoder_position_embeddings",
    "long_image_size",
    "long_audio_seconds",
    "extended_from",
    KEPT_HEADS,
)
"""Fields that only a Long config has."""


@dataclass(frozen=True)
class Architecture:
    """The family of a source, and its model class before and after the conversion."""

    family: Family
    source_config: Any  # the family's base config with the source's values
    source_class: str  # "BertForQuestionAnswering"
    long_class: str  # "LongBertForQuestionAnswering"
    converter: Adoption | None = None  # for a source of a long stock architecture, such as Longformer
    original_config: Any = None  # the source's own config, if there is a converter

    @cached_property
    def kind(self) -> InputKind:
        """The kind of input that the source reads."""
        return kind_of(self.family)

    def original_attention(self) -> LongAttentionConfig | None:
        """The attention that computes the same as a source with a converter. ``None`` for other sources."""
        return None if self.converter is None else self.converter.attention(self.original_config, self.source_class)

    @property
    def encoder_decoder(self) -> bool:
        """Whether the source has both an encoder and a decoder."""
        return self.family.has_encoder(self.long_class) and self.family.has_decoder(self.long_class)

    @property
    def decoder_alone(self) -> bool:
        """Whether the source is only the decoder of an encoder-decoder architecture."""
        return self.family.two_stacks and not self.family.has_encoder(self.long_class)

    @property
    def decoder_reads_text(self) -> bool:
        """Whether the head feeds the whole text to the decoder, which must then be as long."""
        return self.encoder_decoder and self.long_class.endswith(("ForQuestionAnswering", "ForSequenceClassification"))

    def long_config(
        self,
        attention: LongAttentionConfig,
        lengths: Mapping[str, Any],
        rope: RopePlan | None,
        rule: str,
        decoder_attention: LongAttentionConfig | None = None,
    ) -> Any:
        """The config of the result: the source's values, the attention, and the new positions.

        Args:
            attention: of the encoder, or of the only stack. decoder_attention: of the decoder of an encoder-decoder.
            lengths: field of the config -> its new value.
            rope: rotary positions; ``None`` for position tables.
            rule: how position tables are extended.
        """
        values = self.source_config.to_dict()
        if self.family.relative:
            values["max_position_embeddings"] = self.family.base_length(self.source_config)
        for name in NAMES:
            values.pop(name, None)
        if decoder_attention is not None:
            values["decoder_long_attention"] = decoder_attention.to_dict()
        with checkpoint_errors(f"The source's config makes no valid {self.long_class}"):
            config = self.family.config_class.from_dict({**values, "long_attention": attention.to_dict()})
        for field, value in lengths.items():
            setattr(config, field, value)
        if rope is None:
            config.position_extension = rule if extends_learned(rule) else "none" if rule in DROPPED else "tile"
        else:
            rope.write(config)
        config.architectures = [self.long_class]
        result = with_base_windows(config.to_dict())
        config.extended_from = {
            name: value for name, value in values.items() if name not in (*OWN_FIELDS, "dtype") and result.get(name, ...) != value
        }
        return config

    @cached_property
    def model_class(self) -> type[nn.Module]:
        return self.family.model_class(self.long_class)

    def skeleton(self, config: Any) -> nn.Module:
        """The long model on the meta device, for tensor names and shapes.

        Raises:
            CheckpointError: the config contradicts itself.
        """
        with checkpoint_errors(f"The source's config makes no valid {self.source_class}"), torch.device("meta"):
            return self.model_class(config)


def attached_mechanisms(model: nn.Module) -> dict[str, Mechanism]:
    """Module name -> mechanism, in layer order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Mechanism)}


def attached_memory(model: nn.Module) -> dict[str, MemoryTokens]:
    """Module name -> memory tokens."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MemoryTokens)}


def find_architecture(source: Source) -> Architecture:
    """The family and classes for a source.

    Raises:
        CheckpointError: no model_type, unsupported or already converted, or a config that contradicts itself.
    """
    model_type = source.config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(f"The config.json of {source.name!r} has no model_type; it was not saved by transformers.")
    if is_long(source.config):
        raise CheckpointError(
            f"{source.name!r} is already a long checkpoint ({model_type}); convert the short one that it was converted from."
        )
    converter = adoption_of(source.config)
    if converter is None and model_type not in FAMILIES:
        known = sorted({*FAMILIES, *(converter.model_type for converter in ADOPTIONS)})
        meant = "" if class_of(source.config) is not None else nearest(model_type, known)
        raise CheckpointError(
            f"{source.name!r} is a {model_type!r} model, {generic_hint(source)}; Long classes have {len(known)} types, which"
            f' python -c "from hf_longattn.families import FAMILIES; print(*FAMILIES)" lists.{meant}'
        )
    family = FAMILIES[model_type if converter is None else converter.family]
    with checkpoint_errors(f"The config.json of {source.name!r} is not valid for {model_type}"):
        original, values = None, dict(source.config)
        if converter is not None:
            original = AutoConfig.for_model(**source.config)
            of_base = converter.config_values(original)
            values = {name: value for name, value in of_base.items() if name not in ("model_type", "architectures")}
        config = family.base_config_class.from_dict(values)
    if getattr(config, "is_heterogeneous", False):
        raise CheckpointError(
            f"The config.json of {source.name!r} has per_layer_config: its layers differ in size, which no Long class supports; give a "
            "checkpoint whose layers have equal sizes, with different windows only by layer_types."
        )
    named = source.config.get("architectures") or [MODEL_MAPPING_NAMES[model_type] if converter else family.base_model_name]
    source_class = named[0] if isinstance(named, list) and len(named) == 1 and isinstance(named[0], str) else ""
    base_class = source_class if converter is None else converter.base_class(source_class)
    if base_class not in family.model_classes:
        stems = ("", "") if converter is None else converter.stems[::-1]
        classes = [name for name in (base.replace(*stems, 1) for base in family.model_classes) if hasattr(transformers, name)]
        raise CheckpointError(
            f"{source.name!r} is a {' and a '.join(map(str, named)) if isinstance(named, list) else repr(named)}, which is not supported;"
            f" the supported {model_type} classes are {', '.join(classes)}."
        )
    return Architecture(family, config, source_class, family.model_classes[base_class], converter, original)


def generic_architecture(source: Source) -> Architecture:
    """The architecture of a source without a family.

    Raises:
        CheckpointError: the source names no class of transformers, is a long checkpoint, or has Long classes and no towers.
        BackendError: the class does not use transformers' AttentionInterface.
    """
    model_type = source.config.get("model_type")
    family = FAMILIES.get(str(model_type))
    if family is not None and not kind_of(family).apart:
        raise CheckpointError(f"{source.name!r} is a {model_type!r} model, which has Long classes; leave --generic out.")
    if "long_attention" in source.config:
        raise CheckpointError(f"{source.name!r} is already a long checkpoint ({model_type}); convert the one that it was converted from.")
    base = class_of(source.config)
    if base is None:
        raise CheckpointError(
            f"{source.name!r} names no class of transformers {transformers.__version__} in its config.json; set architectures to one."
        )
    check_interface(base)
    with checkpoint_errors(f"The config.json of {source.name!r} is not valid for {model_type}"):
        config: Any = AutoConfig.for_model(**dict(source.config))
    config_class: Any = type(config)
    family = plain_family(config_class)
    return Architecture(family, config, base.__name__, family.model_classes[base.__name__])


def generic_hint(source: Source) -> str:
    """A relative clause that says what can be done with a source without Long classes."""
    base, why = class_of(source.config), stored_facts()["refused"].get(source.config["model_type"])
    if base is None:
        return f"which is not supported: transformers {transformers.__version__} has no class of this type"
    try:
        check_interface(base)
    except BackendError:
        reason = f"{base.__name__} does not take its attention from transformers' AttentionInterface"
        return f"which has no Long classes, not even with --generic, since {reason}"
    if {"window_size", "depths"} <= source.config.keys():  # Swin: a mechanism would run inside each of its windows
        return "which has no Long classes, and needs none: it attends within windows, so larger images already cost little"
    return f"which has no Long classes{f', since {why}' * bool(why)}; --generic may add mechanisms to its plain class"


def class_of(config: Mapping[str, Any]) -> type[PreTrainedModel] | None:
    """The class of transformers that a ``config.json`` names, or its type's class without a head. ``None`` if there is no such class."""
    named = config.get("architectures") or [MODEL_MAPPING_NAMES.get(str(config.get("model_type")))]
    model_class: Any = getattr(transformers, str(named[0]), None) if isinstance(named, list) and len(named) == 1 else None
    if not isinstance(model_class, type) or not issubclass(model_class, PreTrainedModel):
        return None
    known = getattr(model_class, "config_class", None)
    return model_class if known is not None and known.model_type == config.get("model_type") else None


def read_long(source: Source) -> tuple[Any, str, Family, Any]:
    """Config, class name, family and skeleton of a long checkpoint.

    Raises:
        CheckpointError: an unknown model type, or an invalid config.
    """
    model_type = str(source.config.get("model_type"))
    family = family_in(source.config) if model_type.startswith("long_") else None
    if model_type == MULTIMODAL_TYPE:
        raise CheckpointError(
            f"{source.name!r} is one backbone with embedders and heads of several kinds of input, which this command does not read; load "
            "it with AutoModel and a head with hf_longattn.training.load_multitask_head, or give the model that it was trained from."
        )
    if family is None:
        known = [f"long_{base}" for base in FAMILIES]
        raise CheckpointError(
            f"{source.name!r} is a {model_type!r} model, which is not supported; Long classes have {len(known)} types, which python -c "
            f'"from hf_longattn.families import FAMILIES; print(*FAMILIES)" lists.{nearest(model_type, known)}'
        )
    with checkpoint_errors(f"The config.json of {source.name!r} is not valid for {model_type}"):
        config = family.config_class.from_dict(dict(source.config))
    named = named_class(source.config, "none")
    if named not in family.model_classes.values():
        raise CheckpointError(f"{source.name!r} names the class {named!r}; expected one of {', '.join(family.model_classes.values())}.")
    with checkpoint_errors(f"The config.json of {source.name!r} makes no valid {named}"), torch.device("meta"):
        return config, named, family, family.model_class(named)(config)
