"""LongMPNet: MPNet (Song et al. 2020), whose attention joins transformers' AttentionInterface and so takes any mechanism over scores that
has no global tokens. Besides a position table, which begins with two rows that are no positions, all layers share one table of T5's
relative positions: the tokens of a long text that are far apart have the last bucket in common, so it stays as it is.
"""

from typing import Any

from transformers.models.mpnet.configuration_mpnet import MPNetConfig

from .config import LongEncoderConfig
from .registry import Family, PositionTable


class LongMPNetConfig(LongEncoderConfig, MPNetConfig):
    """MPNetConfig with ``long_attention``; the mechanism is ``window`` unless another one is given."""

    model_type = "long_mpnet"

    def __post_init__(self, **kwargs: Any) -> None:
        if kwargs.get("long_attention") is None:
            kwargs["long_attention"] = {"mechanism": "window"}
        super().__post_init__(**kwargs)


FAMILY = Family(
    LongMPNetConfig,
    position_tables=(PositionTable(r"position_embeddings\.weight$", offset=2, skips_padding=True),),
    own_mixin="mpnet_attention.MPNetOnTheInterface",
)

__getattr__ = FAMILY.lazy_classes(globals())
