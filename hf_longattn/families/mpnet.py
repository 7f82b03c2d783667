"""LongMPNet: MPNet (Song et al. 2020), which takes any mechanism over scores that has no global tokens.

Besides a position table, which begins with two rows that are no positions, all layers share one table of T5's relative positions. Tokens
that are far apart have its last bucket in common, so that it serves long texts as it is.
"""

from transformers.models.mpnet.configuration_mpnet import MPNetConfig

from .config import LongEncoderConfig
from .lazy import lazy_classes
from .registry import Family, PositionTable


class LongMPNetConfig(LongEncoderConfig, MPNetConfig):
    """MPNetConfig with ``long_attention``; the mechanism is ``window`` unless another one is given."""

    model_type = "long_mpnet"
    default_mechanism = "window"


FAMILY = Family(
    LongMPNetConfig,
    position_tables=(PositionTable(r"position_embeddings\.weight$", offset=2, skips_padding=True),),
    own_mixin="mpnet_attention.MPNetOnTheBackend",
)

__getattr__ = lazy_classes(FAMILY, globals())
