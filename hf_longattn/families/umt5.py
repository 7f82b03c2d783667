"""LongUMT5: UMT5 (Chung et al. 2023), mT5 in which every layer has its own relative position biases."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.models.umt5.configuration_umt5 import UMT5Config
from transformers.models.umt5.modeling_umt5 import UMT5Attention

from ..modeling.attach.t5_attention import NAMES, BucketedAttention, BucketedConfig, BucketedOnTheBackend
from ..modeling.classes import Family


class LongUMT5Config(BucketedConfig, UMT5Config):
    """UMT5Config with ``long_attention``, ``decoder_long_attention`` and the two lengths of :class:`BucketedConfig`."""

    model_type = "long_umt5"
    attribute_map = {**UMT5Config.attribute_map, **NAMES}
    trained_length = 1024


class LongUMT5Attention(BucketedAttention, UMT5Attention):
    """UMT5Attention with the mechanism."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if not self.runs_mechanism:
            return UMT5Attention.forward(self, hidden_states, encoder_hidden_states, past_key_values, attention_mask, **kwargs)
        output, _, weights = self.attend(hidden_states, encoder_hidden_states, attention_mask, None, past_key_values, **kwargs)
        return output, weights


class UMT5OnTheBackend(BucketedOnTheBackend):
    """Replaces the base's attention by :class:`LongUMT5Attention`."""

    replaced = {UMT5Attention: LongUMT5Attention}


FAMILY = Family(LongUMT5Config, relative=True, stack="UMT5Stack", mixin=UMT5OnTheBackend)
