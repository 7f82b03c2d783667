"""LongErnie: ERNIE (Sun et al. 2020), an encoder like BERT; positions in one learned table."""

from transformers.models.ernie.configuration_ernie import ErnieConfig

from hf_longattn.modeling.classes import Family
from hf_longattn.modeling.family.definition import PositionTable
from hf_longattn.modeling.family.long_config import LongConfig


class LongErnieConfig(LongConfig, ErnieConfig):
    """ErnieConfig with ``long_attention``."""

    model_type = "long_ernie"


FAMILY = Family(LongErnieConfig, position_tables=(PositionTable(r"position_embeddings\.weight$"),))
