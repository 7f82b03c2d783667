"""LongElectra: ELECTRA (Clark et al. 2020), discriminator and generator; its position table is as wide as the embeddings, which may be
narrower than the layers (``embedding_size``).
"""

from transformers.models.electra.configuration_electra import ElectraConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family, PositionTable


class LongElectraConfig(LongConfig, ElectraConfig):
    """ElectraConfig with ``long_attention``."""

    model_type = "long_electra"


FAMILY = Family(LongElectraConfig, position_tables=(PositionTable(r"position_embeddings\.weight$"),))

__getattr__ = lazy_classes(FAMILY, globals())
