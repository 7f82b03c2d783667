"""LongBigBird: BigBird (Zaheer et al. 2020), whose attention joins transformers' AttentionInterface and so takes any mechanism.

A checkpoint of transformers' BigBird is read as it is, with the numbers it has there: see :func:`adopted`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.models.big_bird.configuration_big_bird import BigBirdConfig

from .config import LongConfig
from .lazy import lazy_classes
from .registry import Family, PositionTable


class LongBigBirdConfig(LongConfig, BigBirdConfig):
    """BigBirdConfig with ``long_attention``; the mechanism is ``bigbird`` unless another one is given.

    ``attention_type`` is always ``"original_full"``, the path of transformers' code that leaves the attention to its interface.
    """

    model_type = "long_big_bird"

    def __post_init__(self, **kwargs: Any) -> None:
        self.attention_type = "original_full"
        super().__post_init__(**kwargs)

    def _unasked(self) -> dict[str, Any]:
        return {"mechanism": "bigbird", "block_size": self.block_size, "num_random_blocks": self.num_random_blocks}

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        values, kwargs = super().get_config_dict(*args, **kwargs)
        return (values if "long_attention" in values else {**values, **adopted(values)}), kwargs


def adopted(values: Mapping[str, Any], defaults: Any = None) -> dict[str, Any]:
    """What must be set for a model of transformers, with this ``config.json``, to give the same numbers as a LongBigBird.

    Its block-sparse attention counts the first block again for each random block in evaluation, draws with the layer's number as
    seed in training, cuts blocks from the padded input, and has no dropout on its weights.
    """
    defaults = BigBirdConfig() if defaults is None else defaults
    if values.get("attention_type", defaults.attention_type) == "original_full":
        return {"long_attention": {"mechanism": "full"}}
    mechanism = {
        "mechanism": "bigbird",
        "block_size": values.get("block_size", defaults.block_size),
        "num_random_blocks": values.get("num_random_blocks", defaults.num_random_blocks),
        "random_pattern": "hf",
        "blocks_over": "input",
    }
    return {"attention_type": "original_full", "attention_probs_dropout_prob": 0.0, "long_attention": mechanism}


FAMILY = Family(
    LongBigBirdConfig,
    position_tables=(PositionTable(r"position_embeddings\.weight$"),),
    own_mixin="big_bird_attention.BigBirdOnTheInterface",
)

__getattr__ = lazy_classes(FAMILY, globals())
