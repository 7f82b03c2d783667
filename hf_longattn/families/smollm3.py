"""LongSmolLM3: SmolLM3 (Hugging Face 2025), causal, grouped key/value heads, rotary positions except in every fourth layer."""

from transformers.models.smollm3.configuration_smollm3 import SmolLM3Config

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family


class LongSmolLM3Config(LongConfig, SmolLM3Config):
    """SmolLM3Config with ``long_attention``."""

    model_type = "long_smollm3"


FAMILY = Family(LongSmolLM3Config, rope=True)

__getattr__ = lazy_classes(FAMILY, globals())
