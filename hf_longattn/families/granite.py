"""LongGranite: IBM's Granite 3 (2024), as Llama with factors on embeddings, attention, residuals and logits; rotary positions."""

from transformers.models.granite.configuration_granite import GraniteConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family


class LongGraniteConfig(LongConfig, GraniteConfig):
    """GraniteConfig with ``long_attention``."""

    model_type = "long_granite"


FAMILY = Family(LongGraniteConfig, rope=True)

__getattr__ = lazy_classes(FAMILY, globals())
