"""LongRobertaPreLayerNorm: RoBERTa with its norms before the layers (Ott et al. 2019, fairseq), and RoBERTa's positions: they start after
the row of the padding token, and ``max_position_embeddings`` counts the rows.
"""

from transformers.models.roberta_prelayernorm.configuration_roberta_prelayernorm import RobertaPreLayerNormConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family, PositionTable


class LongRobertaPreLayerNormConfig(LongConfig, RobertaPreLayerNormConfig):
    """RobertaPreLayerNormConfig with ``long_attention``."""

    model_type = "long_roberta-prelayernorm"


FAMILY = Family(
    LongRobertaPreLayerNormConfig,
    position_tables=(PositionTable(r"position_embeddings\.weight$", offset="padding", skips_padding=True),),
)

__getattr__ = lazy_classes(FAMILY, globals())
