"""LongBigBirdPegasus: BigBird-Pegasus (Zaheer et al. 2020, section 4), with its encoder on transformers'
AttentionInterface.

Unlike in Pegasus, positions are learned and projections have no bias. A checkpoint of transformers loads without a
conversion and computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers.models.bigbird_pegasus.configuration_bigbird_pegasus import BigBirdPegasusConfig
from transformers.models.bigbird_pegasus.modeling_bigbird_pegasus import (
    BigBirdPegasusDecoderAttention,
    BigBirdPegasusSelfAttention,
    eager_attention_forward,
)

from ..modeling.attach.custom_attention import OnTheInterface, attend_by_config, by_head
from ..modeling.classes import Family
from ..modeling.family.definition import PositionTable
from ..modeling.family.long_config import LongEncoderDecoderConfig
from .big_bird import BlockSparseConfig


class LongBigBirdPegasusConfig(BlockSparseConfig, LongEncoderDecoderConfig, BigBirdPegasusConfig):
    """BigBirdPegasusConfig with ``long_attention``, ``decoder_long_attention`` and
    ``max_decoder_position_embeddings``.

    ``sparse_attention_dropout`` is the dropout on the encoder's attention weights. transformers' block-sparse
    attention has none.
    """

    model_type = "long_bigbird_pegasus"
    stock = BigBirdPegasusConfig

    def __post_init__(self, **kwargs: Any) -> None:
        self.sparse_attention_dropout = kwargs.pop("sparse_attention_dropout", self.attention_dropout)
        super().__post_init__(**kwargs)

    @classmethod
    def equivalent_settings(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        if not values.get("is_encoder_decoder", True):  # a decoder-only model: full attention
            return {"attention_type": "original_full", "long_attention": {"mechanism": "full"}}
        settings = super().equivalent_settings(values)
        # Only the encoder has no dropout on attention weights: the decoder keeps its own.
        dropout = settings.pop("attention_probs_dropout_prob", None)
        return settings if dropout is None else {**settings, "sparse_attention_dropout": dropout}


class LongBigBirdPegasusSelfAttention(BigBirdPegasusSelfAttention):
    """The projections of the encoder's self-attention with the attention function from the config."""

    config: Any
    is_causal: bool

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        query, key, value = by_head(hidden_states, self.attention_head_size, self.query, self.key, self.value)
        return attend_by_config(self, eager_attention_forward, query, key, value, attention_mask, **kwargs)


class BigBirdPegasusOnTheInterface(OnTheInterface):
    """Replaces the encoder's attention, and marks the decoder's self-attention as causal. In transformers, only the
    mask is causal."""

    replaced = {BigBirdPegasusSelfAttention: LongBigBirdPegasusSelfAttention}

    def adapt_module(self, name: str, module: Any) -> None:
        module.is_causal = False
        module.dropout = nn.Dropout(self.config.sparse_attention_dropout)

    def post_init(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, BigBirdPegasusDecoderAttention):
                module.is_causal = name.endswith("self_attn")
        super().post_init()


FAMILY = Family(
    LongBigBirdPegasusConfig,
    position_tables=(
        PositionTable(r"encoder\.embed_positions\.weight$"),
        PositionTable(r"decoder\.embed_positions\.weight$", decoder=True),
    ),
    mixin=BigBirdPegasusOnTheInterface,
)
