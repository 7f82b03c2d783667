"""LongCamembert: CamemBERT (Martin et al. 2020), RoBERTa for French: its position table starts with two rows that are not positions, and
``max_position_embeddings`` counts them.
"""

from transformers.models.camembert.configuration_camembert import CamembertConfig

from ..modeling.classes import lazy_classes
from ..modeling.config import LongConfig
from ..modeling.family import Family, PositionTable


class LongCamembertConfig(LongConfig, CamembertConfig):
    """CamembertConfig with ``long_attention``."""

    model_type = "long_camembert"


FAMILY = Family(
    LongCamembertConfig, position_tables=(PositionTable(r"position_embeddings\.weight$", offset=2, skips_padding=True, from_padding=True),)
)

__getattr__ = lazy_classes(FAMILY, globals())
