"""LongMPNet: MPNet (Song et al. 2020). Its mechanism must allow terms on its scores and have no global tokens.

The position table starts with two rows that are not positions. All layers also share one table of T5's relative
position biases. It needs no extension, since all large distances have the last bucket.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.mpnet.configuration_mpnet import MPNetConfig
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder, MPNetSelfAttention

from ..engines.score_terms import DistanceBias
from ..errors import OptionError
from ..modeling.attach.attention_sites import layer_mechanisms
from ..modeling.attach.custom_attention import OnTheBackend, attend_by_mechanism, by_head
from ..modeling.classes import Family, long_config
from ..modeling.family.definition import PositionTable
from ..modeling.family.long_config import LongEncoderConfig, runs_mechanisms
from ..positions.relative import buckets

NUM_BUCKETS, FURTHEST = 32, 128
"""Number of buckets, and the smallest distance in the last bucket: constants of transformers' MPNet, not config
fields."""


class LongMPNetEncoder(MPNetEncoder):
    """MPNetEncoder with one position bias per head and distance for mechanisms."""

    def compute_position_bias(
        self, x: Tensor, position_ids: Tensor | None = None, num_buckets: int = NUM_BUCKETS
    ) -> Any:
        """A :class:`DistanceBias`. If no mechanism runs, the base's bias ``(B, H, N, N)``."""
        if not runs_mechanisms(self):
            return super().compute_position_bias(x, position_ids, num_buckets)
        distance = torch.arange(-FURTHEST, FURTHEST + 1, device=x.device)
        return DistanceBias(self.relative_attention_bias(buckets(distance, False, num_buckets, FURTHEST)).T, FURTHEST)


class LongMPNetSelfAttention(MPNetSelfAttention):
    """The projections of MPNetSelfAttention with the mechanism."""

    config: Any
    is_causal = False

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Any = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor | None, ...]:
        if not runs_mechanisms(self):
            return super().forward(hidden_states, attention_mask, position_bias, output_attentions, **kwargs)
        query, key, value = by_head(hidden_states, self.attention_head_size, self.q, self.k, self.v)
        output, weights = attend_by_mechanism(
            self, query, key, value, attention_mask, position_bias=position_bias, output_attentions=output_attentions
        )
        output = self.o(output)
        return (output, weights) if output_attentions else (output,)


class MPNetOnTheBackend(OnTheBackend):
    """Replaces the base's encoder and self-attention, and refuses mechanisms that need global tokens."""

    hands_globals_down = False
    replaced = {MPNetEncoder: LongMPNetEncoder, MPNetSelfAttention: LongMPNetSelfAttention}

    def post_init(self) -> None:
        super().post_init()
        for mechanism in layer_mechanisms(self):
            if mechanism.capabilities.takes_globals:
                raise OptionError(
                    f"{type(self).__name__} cannot pass global tokens to its attention, which mechanism "
                    f"{mechanism.name!r} needs; choose a mechanism without global tokens, for example "
                    "mechanism='nystrom' or 'window'."
                )


FAMILY = Family(
    long_config(__name__, LongEncoderConfig, MPNetConfig, default_mechanism="window"),
    position_tables=(PositionTable(r"position_embeddings\.weight$", offset=2, skips_padding=True),),
    mixin=MPNetOnTheBackend,
)
