"""The config of a Long model whose attention is in an encoder. The encoder has a separate config (Parakeet's heads)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers.configuration_utils import SubConfigSpec

from ...configuration import LongAttentionConfig
from .audio_config import LongAudioConfig
from .config import IMPLEMENTATION_FIELD
from .definition import Family, long_config

ENCODER = "encoder_config"
"""The field that holds the encoder's config."""
ENCODER_FIELDS = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size")
"""Fields of the encoder's config that can also be read and set on the model's config."""


class LongHeldEncoderConfig(LongAudioConfig):
    """Mixin before the base's config class: ``class LongParakeetCTCConfig(LongHeldEncoderConfig, ParakeetCTCConfig)``.

    long_attention: the encoder's. In memory the encoder has a Long config with the same value; in files it has the base's values.
    """

    adds = "``long_attention`` of the encoder"
    encoder_class: ClassVar[type[LongAudioConfig]]
    """The Long config of the encoder."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "encoder_class" in vars(cls):
            cls.sub_configs_defaults = {ENCODER: SubConfigSpec(cls.encoder_class)}
        super().__init_subclass__(**kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        held = getattr(self, ENCODER)
        if held is not None and not isinstance(held, dict | self.encoder_class):
            setattr(self, ENCODER, held.to_dict())
        super().__post_init__(**kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in ENCODER_FIELDS and ENCODER in self.__dict__:
            return getattr(self.__dict__[ENCODER], name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ENCODER_FIELDS:
            setattr(self.__dict__[ENCODER], name, value)
            return
        super().__setattr__(name, value)
        encoder = self.__dict__.get(ENCODER)
        if name == IMPLEMENTATION_FIELD and isinstance(encoder, self.encoder_class) and encoder.__dict__.get(IMPLEMENTATION_FIELD) is None:
            setattr(encoder, IMPLEMENTATION_FIELD, value)  # otherwise transformers' class, which builds the encoder, sets its default
        if name == "long_attention":
            assert encoder is not None
            encoder.long_attention = self.long_attention
            setattr(encoder, IMPLEMENTATION_FIELD, self.__dict__.get(IMPLEMENTATION_FIELD))  # requested before the mechanisms were known

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        if torch.compiler.is_compiling():  # a cache made in a graph asks for the names of the base's fields
            return values
        base: Any = self.encoder_class.__bases__[-1]
        fields = base().to_dict()
        values[ENCODER] = {name: value for name, value in values[ENCODER].items() if name in fields} | {"model_type": base.model_type}
        return values

    def _attention_without_choice(self) -> LongAttentionConfig:
        return self.__dict__[ENCODER].long_attention

    @classmethod
    def default_attention(cls) -> LongAttentionConfig:
        return cls.encoder_class.default_attention()


def with_head(module: str, base: type[Any], name: str, encoder: Family) -> Family:
    """The family in ``module`` of a model ``name`` with an encoder of another family."""
    config = long_config(module, LongHeldEncoderConfig, base, encoder_class=encoder.config_class)
    return Family(config, classes=(name,), rule=encoder.rule)
