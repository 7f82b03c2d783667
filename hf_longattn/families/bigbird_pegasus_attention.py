"""The attention of BigBird-Pegasus' encoder on transformers' AttentionInterface, on which its decoder is already."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bigbird_pegasus.modeling_bigbird_pegasus import (
    BigBirdPegasusDecoderAttention,
    BigBirdPegasusSelfAttention,
    eager_attention_forward,
)

from .own_attention import OnTheInterface


class LongBigBirdPegasusSelfAttention(BigBirdPegasusSelfAttention):
    """The projections of the encoder's self-attention around the attention function that the config names."""

    config: Any
    is_causal: bool

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Attention output ``(B, N, heads · head width)``, and the weights where they are asked for."""
        shape = (self.num_attention_heads, self.attention_head_size)
        query, key, value = (
            projection(hidden_states).unflatten(-1, shape).transpose(1, 2) for projection in (self.query, self.key, self.value)
        )
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropout.p if self.training else 0.0,
            scaling=self.attention_head_size**-0.5,
            **kwargs,
        )
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
