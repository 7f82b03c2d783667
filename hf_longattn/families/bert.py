"""LongBert: BERT (Devlin et al. 2018), positions in one learned table."""

from transformers.models.bert.configuration_bert import BertConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family, PositionTable


class LongBertConfig(LongConfig, BertConfig):
    """BertConfig with ``long_attention``."""

    model_type = "long_bert"


FAMILY = Family(LongBertConfig, position_tables=(PositionTable(r"position_embeddings\.weight$"),))

__getattr__ = lazy_classes(FAMILY, globals())
