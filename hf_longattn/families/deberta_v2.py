"""LongDebertaV2: DeBERTa-v2 and -v3 (He et al. 2021), whose disentangled attention joins the mechanisms as terms of their scores, so that
it takes any mechanism over scores that has no global tokens.

The relative positions keep the buckets of the short model: distances beyond its length have the last one. With ``position_biased_input``
there is a position table besides.
"""

from typing import TYPE_CHECKING, Any

from transformers.models.deberta_v2.configuration_deberta_v2 import DebertaV2Config

from .config import LongEncoderConfig
from .lazy import lazy_classes
from .registry import Family, PositionTable


class LongDebertaV2Config(LongEncoderConfig, DebertaV2Config):
    """DebertaV2Config with ``long_attention``; the mechanism is ``window`` unless another one is given.

    ``max_relative_positions`` is written out, since it must not grow with ``max_position_embeddings``, which it is taken from otherwise.
    """

    model_type = "long_deberta-v2"
    default_mechanism = "window"

    if TYPE_CHECKING:
        max_position_embeddings: int
        max_relative_positions: int

    def __post_init__(self, **kwargs: Any) -> None:
        if self.max_relative_positions < 1:
            self.max_relative_positions = self.max_position_embeddings
        super().__post_init__(**kwargs)


FAMILY = Family(
    LongDebertaV2Config,
    position_tables=(PositionTable(r"position_embeddings\.weight$"),),
    own_mixin="deberta_v2_attention.DebertaV2OnTheBackend",
)

__getattr__ = lazy_classes(FAMILY, globals())
