"""What a Long config of an encoder and a decoder adds: attention and positions of either."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..configuration import LongAttentionConfig
from .config import LongConfig
from .own_windows import equals_base


class LongEncoderDecoderConfig(LongConfig):
    """Stands before the base's config class: ``class LongBartConfig(LongEncoderDecoderConfig, BartConfig)``.

    long_attention: of the encoder's self-attention; of the decoder's where it stands alone (``LongBartForCausalLM``).
    decoder_long_attention: of the decoder's self-attention beside an encoder; ``None`` is full attention. Cross-attention is full.
    max_position_embeddings: tokens that the encoder takes.
    max_decoder_position_embeddings: tokens that the decoder takes; ``None`` is as many as the encoder. A config read from a folder of
        the base keeps the base's number, since a summary does not grow with its document.
    """

    if TYPE_CHECKING:
        decoder_long_attention: LongAttentionConfig | None
        max_decoder_position_embeddings: int
    else:
        decoder_long_attention = None  # `get_text_config(decoder=True)` takes a copy's own away

    def __post_init__(self, **kwargs: Any) -> None:
        self.decoder_long_attention = kwargs.pop("decoder_long_attention", None)
        own = kwargs.pop("max_decoder_position_embeddings", None)
        super().__post_init__(**kwargs)
        self.max_decoder_position_embeddings = self.max_position_embeddings if own is None else own

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "decoder_long_attention" and value is not None:
            value = LongAttentionConfig.from_dict(value)
            value.check_forms(self.decoder_layers, True)
        super().__setattr__(name, value)
        if name == "decoder_long_attention":
            self._check_implementation()

    @property
    def _computes_as_base(self) -> bool:
        decodes = equals_base(self.decoder_attention, [None] * self.decoder_layers, True)
        return decodes and (not self.is_encoder_decoder or super()._computes_as_base)

    def to_dict(self) -> dict[str, Any]:
        values, chosen = super().to_dict(), self.decoder_long_attention
        return values if chosen is None else {**values, "decoder_long_attention": chosen.to_dict()}

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        values, kwargs = super().get_config_dict(*args, **kwargs)
        if "long_attention" not in values:
            default = cls.__dataclass_fields__["max_position_embeddings"].default
            values.setdefault("max_decoder_position_embeddings", values.get("max_position_embeddings", default))
        return values, kwargs

    @property
    def decoder_attention(self) -> LongAttentionConfig:
        """What the decoder's self-attention runs."""
        if self.decoder_long_attention is not None:
            return self.decoder_long_attention
        return LongAttentionConfig("full") if self.is_encoder_decoder else self.long_attention

    @property
    def _attending(self) -> tuple[int, bool]:
        return (self.encoder_layers, False) if self.is_encoder_decoder else (self.decoder_layers, True)

    @property
    def _decoding(self) -> tuple[LongAttentionConfig, int]:
        return self.decoder_attention, self.decoder_layers
