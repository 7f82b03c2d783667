"""LongGte: the encoder of gte-multilingual and Snowflake's Arctic embeddings (Zhang et al. 2024, mGTE): rotary positions, gated layers."""

from transformers.models.gte.configuration_gte import GteConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongEncoderConfig
from ..modeling.family.definition import Family


class LongGteConfig(LongEncoderConfig, GteConfig):
    """GteConfig with ``long_attention``."""

    model_type = "long_gte"


FAMILY = Family(LongGteConfig, rope=True)

__getattr__ = lazy_classes(FAMILY, globals())
