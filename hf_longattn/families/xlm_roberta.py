"""LongXLMRoberta: XLM-RoBERTa (Conneau et al. 2020), RoBERTa over a hundred languages: its position table starts with two rows that are
not positions, and ``max_position_embeddings`` counts them.
"""

from transformers.models.xlm_roberta.configuration_xlm_roberta import XLMRobertaConfig

from ..modeling.classes import lazy_classes
from ..modeling.config import LongConfig
from ..modeling.family import Family, PositionTable


class LongXLMRobertaConfig(LongConfig, XLMRobertaConfig):
    """XLMRobertaConfig with ``long_attention``."""

    model_type = "long_xlm-roberta"


FAMILY = Family(
    LongXLMRobertaConfig, position_tables=(PositionTable(r"position_embeddings\.weight$", offset=2, skips_padding=True, from_padding=True),)
)

__getattr__ = lazy_classes(FAMILY, globals())
