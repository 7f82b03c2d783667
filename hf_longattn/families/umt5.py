"""LongUMT5: UMT5 (Chung et al. 2023), mT5 in which every layer has its own relative position biases."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.umt5.configuration_umt5 import UMT5Config
from transformers.models.umt5.modeling_umt5 import UMT5Attention

from ..cache_argument import take_cache
from ..modeling.attach.custom_attention import OnTheBackend, replacing
from ..modeling.attach.t5_attention import NAMES, BucketedAttention, BucketedConfig
from ..modeling.classes import Family, long_config
from ..modeling.family.config import runs_mechanisms


class LongUMT5Attention(BucketedAttention, UMT5Attention):
    """UMT5Attention with the mechanism."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if not runs_mechanisms(self):
            return UMT5Attention.forward(self, hidden_states, encoder_hidden_states, attention_mask=attention_mask, **kwargs)
        output, _, weights = self.attend(hidden_states, encoder_hidden_states, attention_mask, None, take_cache(kwargs), **kwargs)
        return output, weights


FAMILY = Family(
    long_config(__name__, BucketedConfig, UMT5Config, attribute_map={**UMT5Config.attribute_map, **NAMES}, trained_length=1024),
    relative=True,
    stack="UMT5Stack",
    mixin=replacing(__name__, {UMT5Attention: LongUMT5Attention}, OnTheBackend),
)
