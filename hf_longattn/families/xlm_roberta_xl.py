"""LongXLMRobertaXL: XLM-RoBERTa XL and XXL (Goyal et al. 2021), with its norms before the layers, and RoBERTa's positions: they start after
the row of the padding token, and ``max_position_embeddings`` counts the rows.
"""

from transformers.models.xlm_roberta_xl.configuration_xlm_roberta_xl import XLMRobertaXLConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family, PositionTable


class LongXLMRobertaXLConfig(LongConfig, XLMRobertaXLConfig):
    """XLMRobertaXLConfig with ``long_attention``."""

    model_type = "long_xlm-roberta-xl"


FAMILY = Family(
    LongXLMRobertaXLConfig,
    position_tables=(PositionTable(r"position_embeddings\.weight$", offset="padding", skips_padding=True),),
)

__getattr__ = lazy_classes(FAMILY, globals())
