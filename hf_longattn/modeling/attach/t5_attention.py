"""T5 and mT5: encoder and decoder are of one class, with T5's relative positions in the scores of self-attention.

All distances from ``relative_attention_max_distance`` on share one bucket. Positions therefore need no extension and
limit no length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import EncoderDecoderCache

from ...configuration import LongAttentionConfig
from ...engines.score_terms import DistanceBias
from ...memory.decode_cache import take_cache
from ...positions.relative import buckets
from ..family.long_config import LongEncoderDecoderConfig, runs_mechanisms
from .custom_attention import attend_by_mechanism, by_head

NAMES = {"encoder_layers": "num_layers", "decoder_layers": "num_decoder_layers"}
"""Usual config names for the numbers of layers -> T5's names, for ``attribute_map``."""


class BucketedConfig(LongEncoderDecoderConfig):
    """Mixin before the base's config class.

    max_position_embeddings, max_decoder_position_embeddings: intended maximum tokens of encoder and decoder, not
        enforced. Default: ``n_positions``, or the base's pre-training length (``trained_length``).
    """

    adds = "``long_attention``, ``decoder_long_attention`` and the two lengths"
    trained_length: ClassVar[int] = 512

    if TYPE_CHECKING:
        max_position_embeddings: int
        num_layers: int
        num_decoder_layers: int

    def __init_subclass__(cls, **kwargs: Any) -> None:
        cls.attribute_map = {**cls.attribute_map, **NAMES}
        super().__init_subclass__(**kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        length = kwargs.pop("max_position_embeddings", None)
        self.max_position_embeddings = self.length_in(kwargs) if length is None else length
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        values, kwargs = super().get_config_dict(*args, **kwargs)
        if "long_attention" not in values:
            values["extended_from"] = {**values["extended_from"], "max_position_embeddings": cls.length_in(values)}
        return values, kwargs

    @classmethod
    def length_in(cls, values: Mapping[str, Any]) -> int:
        return int(values.get("max_position_embeddings") or values.get("n_positions") or cls.trained_length)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        """The base's text config. The decoder's has the decoder's number of layers, because caches are built from
        it."""
        config = super().get_text_config(decoder=decoder, encoder=encoder)
        if decoder and not encoder and config is not self:
            config.num_layers = self.num_decoder_layers
        return config

    @property
    def decoder_attention(self) -> LongAttentionConfig:
        """The mechanisms of the decoder's self-attention; full attention by default. No T5 model consists of a decoder
        only."""
        return LongAttentionConfig("full") if self.decoder_long_attention is None else self.decoder_long_attention

    @property
    def attending(self) -> tuple[int, bool]:
        return self.num_layers, False


class BucketedAttention(nn.Module):
    """T5's attention, with the base's projections and our mechanisms. Scores are not scaled.

    A mixin before the base's class. The first layer has a bias, one number per head and distance bucket, which the
    other layers share.
    """

    config: Any
    dropout: float
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear
    relative_attention_bias: nn.Embedding

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        position_bias: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Output ``(B, Nq, d)``, the bias, and the weights if requested. The weights are ``(B, H, Nq, Nk)``.

        Args:
            hidden_states: ``(B, Nq, d)``.
            mask: as passed to the attention function.
            key_value_states: ``(B, Nk, d)`` for cross-attention, which has no bias.
            position_bias: the result of :meth:`biases` from the previous layer. Gradient checkpointing passes it on.
        """
        if not runs_mechanisms(self):
            return super().forward(hidden_states, mask, key_value_states, position_bias, **kwargs)
        cache = take_cache(kwargs)
        layer = int(self.layer_idx or 0)  # type: ignore[arg-type]
        crossing = key_value_states is not None
        both = cache if isinstance(cache, EncoderDecoderCache) else None
        past: Any = cache
        if both is not None:
            past = both.cross_attention_cache if crossing else both.self_attention_cache
        size = int(self.key_value_proj_dim)  # type: ignore[arg-type]
        if crossing and both is not None and both.is_updated.get(layer):
            key = past.layers[layer].keys
            value = past.layers[layer].values
        else:
            source = hidden_states if key_value_states is None else key_value_states
            key, value = by_head(source, size, self.k, self.v)
            if past is not None:
                key, value = past.update(key, value, layer)
            if crossing and both is not None:
                both.is_updated[layer] = True
        (query,) = by_head(hidden_states, size, self.q)

        bias = self.biases() if position_bias is None and self.has_relative_attention_bias else position_bias
        term = None if bias is None else DistanceBias(bias, self.ahead)
        output, weights = attend_by_mechanism(
            self, query, key, value, mask, scaling=1.0, dropout=self.dropout, position_bias=term, **kwargs
        )
        return self.o(output), bias, weights

    @property
    def ahead(self) -> int:
        """Number of distances ahead in the table of :meth:`biases`; further ones get its last bias. 0 in a decoder."""
        return 0 if self.is_decoder else int(self.relative_attention_max_distance)  # type: ignore[arg-type]

    def biases(self) -> Tensor:
        """The bias ``(H, distances)`` for query - key from ``-ahead`` to ``relative_attention_max_distance``."""
        furthest = int(self.relative_attention_max_distance)  # type: ignore[arg-type]
        distance = torch.arange(-self.ahead, furthest + 1, device=self.relative_attention_bias.weight.device)
        at = buckets(distance, bool(self.is_decoder), int(self.relative_attention_num_buckets), furthest)  # type: ignore[arg-type]
        biases: Tensor = self.relative_attention_bias(at).T
        return biases
