"""LongRoberta: RoBERTa (Liu et al. 2019), whose positions start after the row of its padding token in the table.

``max_position_embeddings`` counts the rows, as in RobertaConfig: 4,098 for 4,096 tokens with ``pad_token_id=1``.
"""

from transformers.models.roberta.configuration_roberta import RobertaConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family, PositionTable


class LongRobertaConfig(LongConfig, RobertaConfig):
    """RobertaConfig with ``long_attention``."""

    model_type = "long_roberta"


FAMILY = Family(LongRobertaConfig, position_tables=(PositionTable(r"position_embeddings\.weight$", offset="padding", skips_padding=True),))

__getattr__ = lazy_classes(FAMILY, globals())
