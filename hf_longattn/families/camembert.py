"""LongCamembert: CamemBERT (Martin et al. 2020), RoBERTa for French, with RoBERTa's positions: they start after the row of the padding
token, and ``max_position_embeddings`` counts the rows.
"""

from transformers.models.camembert.configuration_camembert import CamembertConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family, PositionTable


class LongCamembertConfig(LongConfig, CamembertConfig):
    """CamembertConfig with ``long_attention``."""

    model_type = "long_camembert"


FAMILY = Family(
    LongCamembertConfig, position_tables=(PositionTable(r"position_embeddings\.weight$", offset="padding", skips_padding=True),)
)

__getattr__ = lazy_classes(FAMILY, globals())
