"""LongOlmo2: OLMo 2 (OLMo team 2024), causal, normalised queries and keys, rotary positions."""

from transformers.models.olmo2.configuration_olmo2 import Olmo2Config

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family


class LongOlmo2Config(LongConfig, Olmo2Config):
    """Olmo2Config with ``long_attention``."""

    model_type = "long_olmo2"


FAMILY = Family(LongOlmo2Config, rope=True)

__getattr__ = lazy_classes(FAMILY, globals())
