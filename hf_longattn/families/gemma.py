"""LongGemma: Gemma (Mesnard et al. 2024), causal, grouped key/value heads, rotary positions."""

from transformers.models.gemma.configuration_gemma import GemmaConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family


class LongGemmaConfig(LongConfig, GemmaConfig):
    """GemmaConfig with ``long_attention``."""

    model_type = "long_gemma"


FAMILY = Family(LongGemmaConfig, rope=True)

__getattr__ = lazy_classes(FAMILY, globals())
