"""LongStarcoder2: StarCoder2 (Lozhkov et al. 2024), causal, grouped key/value heads, rotary positions; every layer may have a window."""

from transformers.models.starcoder2.configuration_starcoder2 import Starcoder2Config

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family


class LongStarcoder2Config(LongConfig, Starcoder2Config):
    """Starcoder2Config with ``long_attention``."""

    model_type = "long_starcoder2"


FAMILY = Family(LongStarcoder2Config, rope=True)

__getattr__ = lazy_classes(FAMILY, globals())
