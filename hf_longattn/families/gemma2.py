"""LongGemma2: Gemma 2 (Rivière et al. 2024), every other layer with a window, scores capped by a tanh (``attn_logit_softcapping``)."""

from transformers.models.gemma2.configuration_gemma2 import Gemma2Config

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family


class LongGemma2Config(LongConfig, Gemma2Config):
    """Gemma2Config with ``long_attention``."""

    model_type = "long_gemma2"
    score_cap = "attn_logit_softcapping"


FAMILY = Family(LongGemma2Config, rope=True)

__getattr__ = lazy_classes(FAMILY, globals())
