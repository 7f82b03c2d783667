"""The attention of BigBird-Pegasus' encoder on transformers' AttentionInterface, on which its decoder is already."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.models.bigbird_pegasus.modeling_bigbird_pegasus import (
    BigBirdPegasusDecoderAttention,
    BigBirdPegasusSelfAttention,
    eager_attention_forward,
)

from .own_attention import OnTheInterface, attend_by_config, split_heads


class LongBigBirdPegasusSelfAttention(BigBirdPegasusSelfAttention):
    """The projections of the encoder's self-attention around the attention function that the config names."""

    config: Any
    is_causal: bool

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Attention output ``(B, N, heads · head width)``, and the weights where they are asked for."""
        query, key, value = (split_heads(self, projection(hidden_states)) for projection in (self.query, self.key, self.value))
        output, weights = attend_by_config(self, eager_attention_forward, query, key, value, attention_mask, **kwargs)
        return output.flatten(2), weights


class BigBirdPegasusOnTheInterface(OnTheInterface):
    """Stands before the mixin of the Long classes: puts :class:`LongBigBirdPegasusSelfAttention` in place before mechanisms are
    attached, and says of the decoder's self-attention that it is causal, which transformers leaves to the mask."""

    def post_init(self) -> None:
        for name, module in self.named_modules():
            if type(module) is BigBirdPegasusSelfAttention:  # the subclass adds no parameters, so the instance can become one
                module.__class__ = LongBigBirdPegasusSelfAttention
                module.config, module.is_causal = self.config, False
                module.dropout = nn.Dropout(self.config.sparse_attention_dropout)
            elif isinstance(module, BigBirdPegasusDecoderAttention):
                module.is_causal = name.endswith("self_attn")
        super().post_init()
