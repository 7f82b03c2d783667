"""Nyströmformer's attention modules on transformers' AttentionInterface, on which transformers' own are not."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformers.models.bert.modeling_bert import eager_attention_forward
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

from .own_attention import OnTheInterface, attend_by_config, split_heads


class LongNystromformerSelfAttention(NystromformerSelfAttention):
    """The projections of NystromformerSelfAttention around the attention function that the config names.

    The convolution of the values is the mechanism's.
    """

    config: Any
    is_causal: bool

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, output_attentions: bool = False, **kwargs: Any
    ) -> tuple[Tensor | None, ...]:
        """Attention output ``(B, N, heads · head width)``, and the weights where they are asked for."""
        query, key, value = (split_heads(self, projection(hidden_states)) for projection in (self.query, self.key, self.value))
        output, weights = attend_by_config(
            self, eager_attention_forward, query, key, value, attention_mask, output_attentions=output_attentions, **kwargs
        )
        return (output.flatten(2), weights) if output_attentions else (output.flatten(2),)


class NystromformerOnTheInterface(OnTheInterface):
    """Stands before the mixin of the Long classes: puts :class:`LongNystromformerSelfAttention` in place before mechanisms are attached."""

    _no_split_modules: ClassVar[list[str]] = ["NystromformerLayer"]
    hands_globals_down: ClassVar[bool] = False

    def post_init(self) -> None:
        for module in self.modules():
            if type(module) is NystromformerSelfAttention:
                module.__class__ = LongNystromformerSelfAttention
                module.config, module.is_causal = self.config, False
                if module.conv_kernel_size is not None:
                    del module.conv
        super().post_init()
