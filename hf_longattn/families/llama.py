"""LongLlama: Llama (Touvron et al. 2023), causal, grouped key/value heads, rotary positions (``rope_parameters``)."""

from transformers.models.llama.configuration_llama import LlamaConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family


class LongLlamaConfig(LongConfig, LlamaConfig):
    """LlamaConfig with ``long_attention``."""

    model_type = "long_llama"


FAMILY = Family(LongLlamaConfig, rope=True)

__getattr__ = lazy_classes(FAMILY, globals())
