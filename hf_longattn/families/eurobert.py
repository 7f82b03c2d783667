"""LongEuroBert: EuroBERT (Boizard et al. 2025), an encoder with Llama's layers: grouped key/value heads, rotary positions."""

from transformers.models.eurobert.configuration_eurobert import EuroBertConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongEncoderConfig
from ..modeling.family.definition import Family


class LongEuroBertConfig(LongEncoderConfig, EuroBertConfig):
    """EuroBertConfig with ``long_attention``."""

    model_type = "long_eurobert"


FAMILY = Family(LongEuroBertConfig, rope=True)

__getattr__ = lazy_classes(FAMILY, globals())
