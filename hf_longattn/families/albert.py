"""LongAlbert: ALBERT (Lan et al. 2020), one set of weights for all layers; its position table is as wide as the embeddings, which are
narrower than the layers (``embedding_size``). Every layer has a mechanism of its own all the same.
"""

from transformers.models.albert.configuration_albert import AlbertConfig

from .config import LongEncoderConfig
from .lazy import lazy_classes
from .registry import Family, PositionTable


class LongAlbertConfig(LongEncoderConfig, AlbertConfig):
    """AlbertConfig with ``long_attention``."""

    model_type = "long_albert"


FAMILY = Family(
    LongAlbertConfig,
    position_tables=(PositionTable(r"position_embeddings\.weight$"),),
    own_mixin="albert_layers.AlbertCountsItsLayers",
)

__getattr__ = lazy_classes(FAMILY, globals())
