"""LongXLMRoberta: XLM-RoBERTa (Conneau et al. 2020), RoBERTa over a hundred languages, with RoBERTa's positions: they start after the row
of the padding token, and ``max_position_embeddings`` counts the rows.
"""

from transformers.models.xlm_roberta.configuration_xlm_roberta import XLMRobertaConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family, PositionTable


class LongXLMRobertaConfig(LongConfig, XLMRobertaConfig):
    """XLMRobertaConfig with ``long_attention``."""

    model_type = "long_xlm-roberta"


FAMILY = Family(
    LongXLMRobertaConfig, position_tables=(PositionTable(r"position_embeddings\.weight$", offset="padding", skips_padding=True),)
)

__getattr__ = lazy_classes(FAMILY, globals())
