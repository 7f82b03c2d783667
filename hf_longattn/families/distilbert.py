"""LongDistilBert: DistilBERT (Sanh et al. 2019), BERT of half the layers, without token types and pooler; positions in one table, which
with ``sinusoidal_pos_embds`` is initialised with sinusoids and trained like any other.
"""

from transformers.models.distilbert.configuration_distilbert import DistilBertConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongEncoderConfig
from ..modeling.family.definition import Family, PositionTable


class LongDistilBertConfig(LongEncoderConfig, DistilBertConfig):
    """DistilBertConfig with ``long_attention``."""

    model_type = "long_distilbert"


FAMILY = Family(LongDistilBertConfig, position_tables=(PositionTable(r"position_embeddings\.weight$"),))

__getattr__ = lazy_classes(FAMILY, globals())
