"""T5 and mT5. Encoder and decoder have the same class, and self-attention adds a bias for each distance to its scores.

Distances are divided into buckets with one bias each. All distances from ``relative_attention_max_distance`` on share
the last bucket. Positions therefore need no extension, and do not limit the length.
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
"""Usual config fields for the numbers of layers -> T5's fields. Added to the config's ``attribute_map``."""


class BucketedConfig(LongEncoderDecoderConfig):
    """Mixin before the base's config class.

    max_position_embeddings, max_decoder_position_embeddings: intended maximum tokens of encoder and decoder. Longer
        inputs are read as well. The default is ``n_positions``, or ``trained_length`` if there is none.
    trained_length: length of texts in the base's pre-training.
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
        """The maximum number of tokens with these config values."""
        return int(values.get("max_position_embeddings") or values.get("n_positions") or cls.trained_length)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        """The base's text config. In the decoder's, ``num_layers`` is the decoder's number of layers, because caches
        are built from it."""
        config = super().get_text_config(decoder=decoder, encoder=encoder)
        if decoder and not encoder and config is not self:
            config.num_layers = self.num_decoder_layers
        return config

    @property
    def decoder_attention(self) -> LongAttentionConfig:
        """The mechanisms of the decoder's self-attention; full attention by default. Unlike in the base class, a model
        with only a decoder does not exist."""
        return LongAttentionConfig("full") if self.decoder_long_attention is None else self.decoder_long_attention

    @property
    def attending(self) -> tuple[int, bool]:
        return self.num_layers, False


class BucketedAttention(nn.Module):
    """Mixin before T5's attention class that runs mechanisms between the base's projections. Scores are not scaled.

    The first layer has a table with one bias per head and distance bucket. All other layers add the same biases.
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
        """The output ``(B, Nq, d)``, the biases for the next layer, and the weights ``(B, H, Nq, Nk)`` if requested.

        Args:
            hidden_states: ``(B, Nq, d)``.
            mask: the mask for the attention function.
            key_value_states: ``(B, Nk, d)`` for cross-attention, which has no bias.
            position_bias: the biases that the previous layer has returned (:meth:`biases`).
        """
        if not runs_mechanisms(self):
            return super().forward(hidden_states, mask, key_value_states, position_bias, **kwargs)
        # the cache of self-attention or of cross-attention
        cache = take_cache(kwargs)
        layer = int(self.layer_idx or 0)  # type: ignore[arg-type]
        is_cross = key_value_states is not None
        both_caches = cache if isinstance(cache, EncoderDecoderCache) else None
        past: Any = cache
        if both_caches is not None:
            past = both_caches.cross_attention_cache if is_cross else both_caches.self_attention_cache
        # keys and values; those of the encoder do not change from step to step
        size = int(self.key_value_proj_dim)  # type: ignore[arg-type]
        if is_cross and both_caches is not None and both_caches.is_updated.get(layer):
            key = past.layers[layer].keys
            value = past.layers[layer].values
        else:
            source = hidden_states if key_value_states is None else key_value_states
            key, value = by_head(source, size, self.k, self.v)
            if past is not None:
                key, value = past.update(key, value, layer)
            if is_cross and both_caches is not None:
                both_caches.is_updated[layer] = True
        (query,) = by_head(hidden_states, size, self.q)

        if position_bias is None and self.has_relative_attention_bias:
            position_bias = self.biases()
        term = None if position_bias is None else DistanceBias(position_bias, self.ahead)
        output, weights = attend_by_mechanism(
            self, query, key, value, mask, scaling=1.0, dropout=self.dropout, position_bias=term, **kwargs
        )
        return self.o(output), position_bias, weights

    @property
    def ahead(self) -> int:
        """The largest distance to a later key in the table of :meth:`biases`. Later keys beyond it get the same bias.
        0 in a decoder."""
        return 0 if self.is_decoder else int(self.relative_attention_max_distance)  # type: ignore[arg-type]

    def biases(self) -> Tensor:
        """The biases ``(H, distances)`` for every distance query - key from ``-ahead`` to
        ``relative_attention_max_distance``."""
        furthest = int(self.relative_attention_max_distance)  # type: ignore[arg-type]
        distance = torch.arange(-self.ahead, furthest + 1, device=self.relative_attention_bias.weight.device)
        at = buckets(distance, bool(self.is_decoder), int(self.relative_attention_num_buckets), furthest)  # type: ignore[arg-type]
        biases: Tensor = self.relative_attention_bias(at).T
        return biases
