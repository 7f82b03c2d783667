"""MPNet's attention modules on the ``longattn`` backend; with another attention implementation they are transformers' own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder, MPNetSelfAttention

from ..backend import BACKEND, longattn_attention_forward
from ..engines.distance_bias import DistanceBias
from ..positions.relative.t5_buckets import buckets
from .limits import refuse_scoreless

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Base
else:
    _Base = object

NUM_BUCKETS, FURTHEST = 32, 128
"""What transformers' MPNet counts by, whatever its config says; all distances from the latter on have one bucket."""


class LongMPNetEncoder(MPNetEncoder):
    """MPNetEncoder whose position bias is one number for each head and distance, where a mechanism takes it."""

    def compute_position_bias(self, x: Tensor, position_ids: Tensor | None = None, num_buckets: int = NUM_BUCKETS) -> Any:
        """:class:`DistanceBias`; for other attention implementations ``(B, H, N, N)``."""
        if self.config._attn_implementation != BACKEND:
            return super().compute_position_bias(x, position_ids, num_buckets)
        distance = torch.arange(-FURTHEST, FURTHEST + 1, device=x.device)
        return DistanceBias(self.relative_attention_bias(buckets(distance, False, num_buckets, FURTHEST)).T, FURTHEST)


class LongMPNetSelfAttention(MPNetSelfAttention):
    """The projections of MPNetSelfAttention around the mechanism."""

    config: Any
    is_causal: bool

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Any = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor | None, ...]:
        """Attention output ``(B, N, width)``, and the weights where they are asked for."""
        if self.config._attn_implementation != BACKEND:
            return super().forward(hidden_states, attention_mask, position_bias, output_attentions, **kwargs)
        shape = (self.num_attention_heads, self.attention_head_size)
        query, key, value = (one(hidden_states).unflatten(-1, shape).transpose(1, 2) for one in (self.q, self.k, self.v))
        output, weights = longattn_attention_forward(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropout.p if self.training else 0.0,
            scaling=self.attention_head_size**-0.5,
            position_bias=position_bias,
            output_attentions=output_attentions,
        )
        output = self.o(output.flatten(2))
        return (output, weights) if output_attentions else (output,)


class MPNetOnTheInterface(_Base):
    """Stands before the mixin of the Long classes: puts the classes above in place before mechanisms are attached."""

    _supports_attention_backend = True
    hands_globals_down: ClassVar[bool] = False

    def post_init(self) -> None:
        for module in self.modules():
            if type(module) is MPNetEncoder:  # the subclasses add no parameters, so the instances can become theirs
                module.__class__ = LongMPNetEncoder
            elif type(module) is MPNetSelfAttention:
                module.__class__ = LongMPNetSelfAttention
                module.config, module.is_causal = self.config, False
        super().post_init()
        refuse_scoreless(self, "adds relative positions to its attention scores")
