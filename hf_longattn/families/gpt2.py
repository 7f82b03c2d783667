"""LongGPT2: GPT-2 (Radford et al. 2019), causal, positions in one learned table."""

from transformers.models.gpt2.configuration_gpt2 import GPT2Config

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family, PositionTable


class LongGPT2Config(LongConfig, GPT2Config):
    """GPT2Config with ``long_attention``."""

    model_type = "long_gpt2"


FAMILY = Family(LongGPT2Config, position_tables=(PositionTable(r"wpe\.weight$"),))

__getattr__ = lazy_classes(FAMILY, globals())
