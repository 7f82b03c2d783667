"""LongIJepa: image-based joint-embedding predictive architecture (Assran et al. 2023), a ViT without a class token."""

from transformers.models.ijepa.configuration_ijepa import IJepaConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.definition import Family
from ..modeling.family.grid_config import LongGridConfig
from ..modeling.family.grid_rule import GridRule


class LongIJepaConfig(LongGridConfig, IJepaConfig):
    """IJepaConfig with ``long_attention``."""

    model_type = "long_ijepa"


FAMILY = Family(LongIJepaConfig, rule=GridRule())

__getattr__ = lazy_classes(FAMILY, globals())
