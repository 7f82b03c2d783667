"""LongBigBird: BigBird (Zaheer et al. 2020), with its attention on transformers' AttentionInterface, so that it takes
any mechanism.

A checkpoint of transformers' BigBird loads without a conversion and computes the same: see
:meth:`BlockSparseConfig.equivalent_settings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from transformers.models.bert.modeling_bert import eager_attention_forward
from transformers.models.big_bird.configuration_big_bird import BigBirdConfig
from transformers.models.big_bird.modeling_big_bird import BigBirdSelfAttention

from ..configuration import LongAttentionConfig
from ..memory.decode_cache import take_cache
from ..modeling.attach.custom_attention import OnTheInterface, attend_by_config, by_head
from ..modeling.classes import Family
from ..modeling.family.definition import PositionTable
from ..modeling.family.long_config import LongConfig
from ..modeling.packed_documents import leave_out_documents


class BlockSparseConfig(LongConfig):
    """The config of a BigBird. The default mechanism is ``bigbird``.

    ``attention_type`` is always ``"original_full"``, the path of transformers' code that leaves the attention to its
    interface.
    """

    stock: ClassVar[Any] = BigBirdConfig
    """transformers' config class, for the defaults of its values."""

    def __post_init__(self, **kwargs: Any) -> None:
        self.attention_type = "original_full"
        super().__post_init__(**kwargs)

    def default_attention(self) -> LongAttentionConfig:
        return LongAttentionConfig("bigbird", block_size=self.block_size, num_random_blocks=self.num_random_blocks)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        values, kwargs = super().get_config_dict(*args, **kwargs)
        if "long_attention" not in values:  # a config.json of transformers' BigBird
            values = {**values, **cls.equivalent_settings(values)}
        return values, kwargs

    @classmethod
    def equivalent_settings(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Config fields for ``values`` of a ``config.json`` of transformers. With them, a Long model in eval mode
        computes the same as transformers' model.

        They reproduce transformers' block-sparse attention: it counts the first block once more for each random block,
        cuts blocks from the padded input, and has no dropout on attention weights. One difference remains: in
        training, transformers draws random blocks, and a Long model does not.
        """
        defaults = cls.stock()
        if values.get("attention_type", defaults.attention_type) == "original_full":
            return {"long_attention": {"mechanism": "full"}}
        mechanism = {
            "mechanism": "bigbird",
            "block_size": values.get("block_size", defaults.block_size),
            "num_random_blocks": values.get("num_random_blocks", defaults.num_random_blocks),
            "random_pattern": "hf_eval",
            "blocks_over": "input",
        }
        return {"attention_type": "original_full", "attention_probs_dropout_prob": 0.0, "long_attention": mechanism}


class LongBigBirdConfig(BlockSparseConfig, BigBirdConfig):
    """BigBirdConfig with ``long_attention``."""

    model_type = "long_big_bird"


class LongBigBirdSelfAttention(BigBirdSelfAttention):
    """The projections of BigBirdSelfAttention with the attention function from the config.

    As in BERT, only cross-attention attends to the encoder, under the encoder's padding mask. In transformers 5.23, a
    decoder's self-attention receives the encoder's states as well, and then sees none of the decoder's tokens.
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
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        source = hidden_states
        if self.is_cross_attention and encoder_hidden_states is not None:
            source = encoder_hidden_states
        (query,) = by_head(hidden_states, self.attention_head_size, self.query)
        key, value = by_head(source, self.attention_head_size, self.key, self.value)
        cache = take_cache(kwargs)
        if cache is not None and not self.is_cross_attention:  # cross-attention keys are not cached
            key, value = cache.update(key, value, self.layer_idx)
        return attend_by_config(self, eager_attention_forward, query, key, value, attention_mask, **kwargs)


class BigBirdOnTheInterface(OnTheInterface):
    """Replaces the base's attention by :class:`LongBigBirdSelfAttention`."""

    _no_split_modules = ["BigBirdLayer"]
    replaced = {BigBirdSelfAttention: LongBigBirdSelfAttention}

    def adapt_module(self, name: str, module: Any) -> None:
        module.is_cross_attention = "crossattention" in name
        module.is_causal = module.is_decoder and not module.is_cross_attention

    @property
    def packs_documents(self) -> bool:
        # The question-answering head has this attribute. It searches a row for one question, to leave it out.
        return not hasattr(self, "sep_token_id")

    def read_arguments(self, arguments: dict[str, Any]) -> None:
        super().read_arguments(arguments)
        if not self.packs_documents:
            leave_out_documents(self, arguments)


FAMILY = Family(
    LongBigBirdConfig,
    position_tables=(PositionTable(r"position_embeddings\.weight$"),),
    mixin=BigBirdOnTheInterface,
)
