"""The family of a source, and its model class before and after a conversion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from ..configuration import LongAttentionConfig
from ..errors import BackendError, CheckpointError, checkpoint_errors, nearest
from ..files import FORMAT_FIELD, is_long, named_class
from ..loading import LOADING
from ..modeling.classes import check_interface, is_model_class
from ..modeling.family.definition import FAMILIES, Family, stored_facts
from ..modeling.family.registration import MULTIMODAL_TYPE
from ..modeling.family.sliding_window import with_base_windows
from ..modeling.generic import check_class, family_in, plain_family
from ..modeling.pruning import KEPT_HEADS
from ..positions.rope import RopePlan
from ..positions.tables import DROPPED, extends_learned
from .adopt import ADOPTIONS, Adoption
from .settings import ConversionConfig
from .source import Source, refuse_quantised

NAMES = ("model_type", "architectures", "transformers_version", "_name_or_path", "auto_map")
"""Fields of a config that identify its model, so that a result does not get them from its source."""
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
"""Fields of a config that only Long configs have."""


LISTED = (
    'Long classes have {} types, which python -c "from hf_longattn.families import FAMILIES; print(*FAMILIES)" lists.'
)
"""End of a message about an unsupported model type, with a placeholder for the number of supported types."""


@dataclass
class Architecture:
    """The family of a source, and its model class before and after the conversion.

    Attributes:
        model_class: the class with the name ``long_class``.
        encoder_decoder: whether the source has both an encoder and a decoder.
        decoder_reads_text: whether the head feeds the whole text to the decoder, too. The decoder must then take texts
            that are as long as the encoder's.
    """

    family: Family
    source_config: Any  # the family's base config with the source's values
    source_class: str  # "BertForQuestionAnswering"
    long_class: str  # "LongBertForQuestionAnswering"
    converter: Adoption | None = None  # for a source of a long stock architecture, such as Longformer
    original_config: Any = None  # the source's own config, if there is a converter
    original_attention: LongAttentionConfig | None = None  # equals the attention of this source

    def __post_init__(self) -> None:
        self.model_class: type[nn.Module] = self.family.model_class(self.long_class)
        self.encoder_decoder = self.family.has_encoder(self.long_class) and self.family.has_decoder(self.long_class)
        heads_that_read = ("ForQuestionAnswering", "ForSequenceClassification")
        self.decoder_reads_text = self.encoder_decoder and self.long_class.endswith(heads_that_read)

    def long_config(
        self,
        attention: LongAttentionConfig | None,
        decoder_attention: LongAttentionConfig | None = None,
        lengths: Mapping[str, Any] = MappingProxyType({}),
        rope: RopePlan | None = None,
        strategy: str = "tile",
    ) -> Any:
        """The config of the result, with the source's values, the attention and the new positions.

        Args:
            attention: attention of the encoder or the only stack; ``None`` for the family's default.
            decoder_attention: attention of the decoder beside an encoder; ``None`` for the default.
            lengths: config fields with new maximum lengths.
            rope: new rotary positions.
            strategy: how position tables are extended, if there is no ``rope``.
        """
        values = self.source_config.to_dict()
        if self.family.relative:
            values["max_position_embeddings"] = self.family.base_length(self.source_config)
        values = {name: value for name, value in values.items() if name not in NAMES}
        stacks = {"long_attention": attention, "decoder_long_attention": decoder_attention}
        attentions = {name: stack.to_dict() for name, stack in stacks.items() if stack is not None}
        with checkpoint_errors(f"The source's config makes no valid {self.long_class}"):
            config = self.family.config_class.from_dict({**values, **attentions})
        for name, value in lengths.items():
            setattr(config, name, value)
        if rope is not None:
            rope.write(config)
        elif strategy in DROPPED:
            config.position_extension = "none"
        else:
            config.position_extension = strategy if extends_learned(strategy) else "tile"
        config.architectures = [self.long_class]
        result = with_base_windows(config.to_dict())
        # the source's values that the result has changed
        config.extended_from = {
            name: value
            for name, value in values.items()
            if name not in (*OWN_FIELDS, "dtype") and result.get(name, ...) != value
        }
        return config

    def skeleton(self, config: Any) -> nn.Module:
        """The long model on the meta device, which has names and shapes of all tensors. Refuses a config that no model
        can be built from."""
        with (
            checkpoint_errors(f"The source's config makes no valid {self.source_class}"),
            LOADING,
            torch.device("meta"),
        ):
            return self.model_class(config)


def find_architecture(source: Source, request: ConversionConfig) -> Architecture:
    """The family and classes of a source. With the setting ``generic``, the result keeps the source's class.

    Raises:
        CheckpointError: the source is not supported, already converted, quantised or damaged.
    """
    model_type = source.config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(
            f"The config.json of {source.name!r} has no model_type; it was not saved by transformers."
        )
    if is_long(source.config):
        raise CheckpointError(
            f"{source.name!r} is already a long checkpoint ({model_type}); convert the short one that it was "
            "converted from."
        )
    if model_type in ("siglip2", "siglip2_vision_model"):
        raise CheckpointError(
            f"{source.name!r} reads images of different sizes in one batch (NaFlex), which mechanisms do not; load it "
            'with attn_implementation="longattn", or convert a SigLIP 2 for images of one size, such as '
            "google/siglip2-base-patch16-224."
        )
    refuse_quantised(source)
    if request.generic:
        return _plain_architecture(source, model_type)
    return _long_architecture(source, model_type)


def _long_architecture(source: Source, model_type: str) -> Architecture:
    """The architecture of a source that becomes a Long class."""
    converter = ADOPTIONS.get(model_type)
    if converter is None and model_type not in FAMILIES:
        known = sorted({*FAMILIES, *ADOPTIONS})
        message = f"{source.name!r} is a {model_type!r} model, {generic_hint(source)}; {LISTED.format(len(known))}"
        if class_of(source.config) is None:  # the type may be misspelt
            message += nearest(model_type, known)
        raise CheckpointError(message)
    family = FAMILIES[model_type if converter is None else converter.family]
    default_class = family.base_model_name if converter is None else MODEL_MAPPING_NAMES[model_type]
    source_class = named_class(source.config, default_class)
    original = attention = None
    values = dict(source.config)
    with checkpoint_errors(f"The config.json of {source.name!r} is not valid for {model_type}"):
        if converter is not None:
            original = AutoConfig.for_model(**source.config)
            values, attention = converter.settings(original, source_class)
            values = {name: value for name, value in values.items() if name not in NAMES}
        config = family.base_config_class.from_dict(values)
    if getattr(config, "is_heterogeneous", False):
        raise CheckpointError(
            f"The config.json of {source.name!r} has per_layer_config: its layers differ in size, which no Long class "
            "supports; give a checkpoint whose layers have equal sizes, with different windows only by layer_types."
        )
    # the base's class with the same head, such as RobertaForMaskedLM for LongformerForMaskedLM
    stem, base_stem = ("", "") if converter is None else converter.stems
    base_class = source_class.replace(stem, base_stem, 1) if source_class.startswith(stem) else ""
    check_class(source.name, source.folder, source.config, allow_pickle=source.pickled)
    if base_class not in family.model_classes:
        names = (base.replace(base_stem, stem, 1) for base in family.model_classes)
        classes = [name for name in names if hasattr(transformers, name)]
        raise CheckpointError(
            f"{source.name!r} names the class {source_class!r:.99}, which is not supported; the supported "
            f"{model_type} classes are {', '.join(classes)}."
        )
    return Architecture(family, config, source_class, family.model_classes[base_class], converter, original, attention)


def _plain_architecture(source: Source, model_type: str) -> Architecture:
    """The architecture of a source that keeps its class, and gets mechanisms (``--generic``)."""
    family = FAMILIES.get(model_type)
    base = class_of(source.config)
    if family is not None and not family.towers:
        raise CheckpointError(
            f"{source.name!r} is a {model_type!r} model, which has Long classes; leave --generic out."
        )
    if base is None:
        raise CheckpointError(
            f"{source.name!r} names no class of transformers {transformers.__version__} in its config.json; set "
            "architectures to one."
        )
    check_interface(base)
    with checkpoint_errors(f"The config.json of {source.name!r} is not valid for {model_type}"):
        config: Any = AutoConfig.for_model(**dict(source.config))
    check_class(source.name, source.folder, source.config, allow_pickle=source.pickled)
    plain = plain_family(config.__class__)
    return Architecture(plain, config, base.__name__, plain.model_classes[base.__name__])


def generic_hint(source: Source) -> str:
    """Why a source has no Long classes, and whether ``--generic`` may help, as a relative clause for a message."""
    base = class_of(source.config)
    if base is None:
        return f"which is not supported: transformers {transformers.__version__} has no class of this type"
    try:
        check_interface(base)
    except BackendError:
        reason = f"{base.__name__} does not take its attention from transformers' AttentionInterface"
        return f"which has no Long classes, not even with --generic, since {reason}"
    if {"window_size", "depths"} <= source.config.keys():  # Swin: a mechanism would run inside each of its windows
        return (
            "which has no Long classes, and needs none: it attends within windows, so larger images already cost "
            "little"
        )
    why = stored_facts()["refused"].get(source.config["model_type"])
    reason = f", since {why}" if why else ""
    return f"which has no Long classes{reason}; --generic may add mechanisms to its plain class"


def class_of(config: Mapping[str, Any]) -> type[PreTrainedModel] | None:
    """The transformers class that a ``config.json`` names, or if it names none, that of its model type without a head.

    ``None`` if this class does not exist, or belongs to another model type.
    """
    model_type = str(config.get("model_type"))
    model_class: Any = getattr(transformers, named_class(config, str(MODEL_MAPPING_NAMES.get(model_type))), None)
    if not is_model_class(model_class):
        return None
    config_class = getattr(model_class, "config_class", None)
    return model_class if getattr(config_class, "model_type", None) == model_type else None


def read_long(source: Source) -> tuple[Any, str, Family, Any]:
    """Open the config of a long checkpoint.

    Returns:
        The config, the name of its Long class, the class's family, and the model on the meta device.

    Raises:
        CheckpointError: the model type or class is unknown, or the config is invalid.
    """
    model_type = str(source.config.get("model_type"))
    family = family_in(source.config) if model_type.startswith("long_") else None
    if model_type == MULTIMODAL_TYPE:
        raise CheckpointError(
            f"{source.name!r} is a multitask model with several kinds of input, which this command does not read; "
            "load it with AutoModel and a head with hf_longattn.training.load_multitask_head, or give the model that "
            "it was trained from."
        )
    if family is None:
        types = LISTED.format(len(FAMILIES)) + nearest(model_type, [f"long_{base}" for base in FAMILIES])
        raise CheckpointError(f"{source.name!r} is a {model_type!r} model, which is not supported; {types}")
    with checkpoint_errors(f"The config.json of {source.name!r} is not valid for {model_type}"):
        config = family.config_class.from_dict(dict(source.config))
    check_class(source.name, source.folder, source.config)
    class_name = named_class(source.config, "none")
    if class_name not in family.model_classes.values():
        classes = ", ".join(family.model_classes.values())
        raise CheckpointError(f"{source.name!r} names the class {class_name!r}; expected one of {classes}.")
    with (
        checkpoint_errors(f"The config.json of {source.name!r} makes no valid {class_name}"),
        LOADING,
        torch.device("meta"),
    ):
        return config, class_name, family, family.model_class(class_name)(config)
