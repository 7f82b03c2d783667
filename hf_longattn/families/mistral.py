"""LongMistral: Mistral (Jiang et al. 2023), causal, grouped key/value heads, rotary positions; every layer may have a window."""

from transformers.models.mistral.configuration_mistral import MistralConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family


class LongMistralConfig(LongConfig, MistralConfig):
    """MistralConfig with ``long_attention``."""

    model_type = "long_mistral"


FAMILY = Family(LongMistralConfig, rope=True)

__getattr__ = lazy_classes(FAMILY, globals())
