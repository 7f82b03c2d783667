"""LongModernBert: ModernBERT (Warner et al. 2024), rotary positions (``rope_parameters`` of its global and of its local layers).

Two of three layers are local: they see ``local_attention`` tokens around them, and stay so
(:mod:`hf_longattn.modeling.family.sliding_window`). Without ``long_attention`` the others attend to everything, and all
is as in ModernBERT.
"""

from transformers.models.modernbert.configuration_modernbert import ModernBertConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongEncoderConfig
from ..modeling.family.definition import Family


class LongModernBertConfig(LongEncoderConfig, ModernBertConfig):
    """ModernBertConfig with ``long_attention``."""

    model_type = "long_modernbert"
    default_mechanism = "full"


FAMILY = Family(LongModernBertConfig, rope=True)

__getattr__ = lazy_classes(FAMILY, globals())
