"""LongQwen3Moe: the mixtures of experts of Qwen3 (Yang et al. 2025), with the attention of Qwen3; all layers may have a window."""

from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family


class LongQwen3MoeConfig(LongConfig, Qwen3MoeConfig):
    """Qwen3MoeConfig with ``long_attention``."""

    model_type = "long_qwen3_moe"


FAMILY = Family(LongQwen3MoeConfig, rope=True)

__getattr__ = lazy_classes(FAMILY, globals())
