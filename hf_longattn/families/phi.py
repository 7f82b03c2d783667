"""LongPhi: Phi-1 to Phi-2 (Gunasekar et al. 2023), causal, rotary positions on a part of each head (``partial_rotary_factor``)."""

from transformers.models.phi.configuration_phi import PhiConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family


class LongPhiConfig(LongConfig, PhiConfig):
    """PhiConfig with ``long_attention``."""

    model_type = "long_phi"


FAMILY = Family(LongPhiConfig, rope=True)

__getattr__ = lazy_classes(FAMILY, globals())
