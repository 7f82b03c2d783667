"""LongRoberta: RoBERTa (Liu et al. 2019), whose position table starts with two rows that are not positions.

``max_position_embeddings`` counts the rows, as in RobertaConfig: 4,098 for 4,096 tokens.
"""

from transformers.models.roberta.configuration_roberta import RobertaConfig

from ..modeling.classes import lazy_classes
from ..modeling.config import LongConfig
from ..modeling.family import Family, PositionTable


class LongRobertaConfig(LongConfig, RobertaConfig):
    """RobertaConfig with ``long_attention``."""

    model_type = "long_roberta"


FAMILY = Family(
    LongRobertaConfig, position_tables=(PositionTable(r"position_embeddings\.weight$", offset=2, skips_padding=True, from_padding=True),)
)

__getattr__ = lazy_classes(FAMILY, globals())
