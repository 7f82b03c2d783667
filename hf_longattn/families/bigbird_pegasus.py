"""LongBigBirdPegasus: BigBird-Pegasus (Zaheer et al. 2020, section 4), with its encoder on transformers' AttentionInterface.

Unlike in Pegasus, positions are learned and projections have no bias. A checkpoint of transformers loads without a conversion and computes
the same.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.models.bigbird_pegasus.configuration_bigbird_pegasus import BigBirdPegasusConfig
from transformers.models.bigbird_pegasus.modeling_bigbird_pegasus import (
    BigBirdPegasusDecoderAttention,
    BigBirdPegasusSelfAttention,
    eager_attention_forward,
)

from ..modeling.attach.custom_attention import OnTheInterface, attend_by_config, split_heads
from ..modeling.classes import Family
from ..modeling.family.config import LongEncoderDecoderConfig
from ..modeling.family.definition import encoder_decoder_tables
from .big_bird import equivalent_settings


class LongBigBirdPegasusConfig(LongEncoderDecoderConfig, BigBirdPegasusConfig):
    """BigBirdPegasusConfig with ``long_attention`` (``bigbird`` unless another one is given), ``decoder_long_attention`` and
    ``max_decoder_position_embeddings``.

    ``attention_type`` is always ``"original_full"``, the path of transformers' code that leaves the attention to its module.
    ``sparse_attention_dropout`` is the dropout on the encoder's attention weights. transformers' block-sparse attention has none.
    """

    model_type = "long_bigbird_pegasus"

    def __post_init__(self, **kwargs: Any) -> None:
        self.attention_type = "original_full"
        self.sparse_attention_dropout = kwargs.pop("sparse_attention_dropout", self.attention_dropout)
        super().__post_init__(**kwargs)

    def _attention_without_choice(self) -> dict[str, Any]:
        return {"mechanism": "bigbird", "block_size": self.block_size, "num_random_blocks": self.num_random_blocks}

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        values, kwargs = super().get_config_dict(*args, **kwargs)
        return (values if "long_attention" in values else {**values, **equivalent_encoder_settings(values)}), kwargs


def equivalent_encoder_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Config fields with which a LongBigBirdPegasus computes the same as transformers' model. The latter has this ``config.json`` and is in
    eval mode."""
    if not values.get("is_encoder_decoder", True):  # a decoder-only model: full attention
        return {"attention_type": "original_full", "long_attention": {"mechanism": "full"}}
    settings = equivalent_settings(values, BigBirdPegasusConfig())
    dropout = settings.pop("attention_probs_dropout_prob", None)  # of the encoder only: the decoder keeps its dropout
    return settings if dropout is None else {**settings, "sparse_attention_dropout": dropout}


class LongBigBirdPegasusSelfAttention(BigBirdPegasusSelfAttention):
    """The projections of the encoder's self-attention with the attention function that the config names."""

    config: Any
    is_causal: bool

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        query, key, value = (split_heads(self, projection(hidden_states)) for projection in (self.query, self.key, self.value))
        return attend_by_config(self, eager_attention_forward, query, key, value, attention_mask, **kwargs)


class BigBirdPegasusOnTheInterface(OnTheInterface):
    """Replaces the encoder's attention, and marks the decoder's self-attention as causal. In transformers only its mask is causal."""

    replaced = {BigBirdPegasusSelfAttention: LongBigBirdPegasusSelfAttention}

    def adapt_module(self, name: str, module: Any) -> None:
        module.is_causal, module.dropout = False, nn.Dropout(self.config.sparse_attention_dropout)

    def post_init(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, BigBirdPegasusDecoderAttention):
                module.is_causal = name.endswith("self_attn")
        super().post_init()


FAMILY = Family(
    LongBigBirdPegasusConfig,
    position_tables=encoder_decoder_tables(),
    mixin=BigBirdPegasusOnTheInterface,
)
