"""LongQwen3: Qwen3 (Yang et al. 2025), as Qwen2 with normalised queries and keys."""

from transformers.models.qwen3.configuration_qwen3 import Qwen3Config

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family


class LongQwen3Config(LongConfig, Qwen3Config):
    """Qwen3Config with ``long_attention``."""

    model_type = "long_qwen3"


FAMILY = Family(LongQwen3Config, rope=True)

__getattr__ = lazy_classes(FAMILY, globals())
