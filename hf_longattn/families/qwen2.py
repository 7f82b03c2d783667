"""LongQwen2: Qwen2 and Qwen2.5 (Yang et al. 2024), causal, grouped key/value heads, rotary positions; the last layers may have a window."""

from transformers.models.qwen2.configuration_qwen2 import Qwen2Config

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family


class LongQwen2Config(LongConfig, Qwen2Config):
    """Qwen2Config with ``long_attention``."""

    model_type = "long_qwen2"


FAMILY = Family(LongQwen2Config, rope=True)

__getattr__ = lazy_classes(FAMILY, globals())
