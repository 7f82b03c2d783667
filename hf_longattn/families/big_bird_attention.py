"""BigBird's attention modules on transformers' AttentionInterface, on which transformers' own are not."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.models.bert.modeling_bert import eager_attention_forward
from transformers.models.big_bird.modeling_big_bird import BigBirdSelfAttention

from .own_attention import OnTheInterface, attend_by_config, split_heads


class LongBigBirdSelfAttention(BigBirdSelfAttention):
    """The projections of BigBirdSelfAttention around the attention function that the config names.

    Only the modules called cross-attention look at an encoder, and under its padding mask, as in BERT; transformers 5.23 hands the
    encoder's states to a decoder's self-attention as well, which then sees none of its own tokens.
    """

    config: Any
    is_causal: bool
    is_cross_attention: bool

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention output ``(B, N, heads · head width)``, and the weights where they are asked for."""
        source = encoder_hidden_states if self.is_cross_attention and encoder_hidden_states is not None else hidden_states
        inputs = ((self.query, hidden_states), (self.key, source), (self.value, source))
        query, key, value = (split_heads(self, projection(states)) for projection, states in inputs)
        if past_key_values is not None and not self.is_cross_attention:  # the cache has no room for what the encoder gave
            key, value = past_key_values.update(key, value, self.layer_idx)
        output, weights = attend_by_config(self, eager_attention_forward, query, key, value, attention_mask, **kwargs)
        return output.flatten(2), weights


class BigBirdOnTheInterface(OnTheInterface):
    """Stands before the mixin of the Long classes: puts :class:`LongBigBirdSelfAttention` in place before mechanisms are attached."""

    _no_split_modules = ["BigBirdLayer"]

    def post_init(self) -> None:
        for name, module in self.named_modules():
            if type(module) is BigBirdSelfAttention:  # the subclass adds no parameters, so the instance can become one
                module.__class__ = LongBigBirdSelfAttention
                module.config = self.config
                module.is_cross_attention = "crossattention" in name
                module.is_causal = module.is_decoder and not module.is_cross_attention
        super().post_init()
