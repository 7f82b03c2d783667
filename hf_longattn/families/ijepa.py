"""LongIJepa: image-based joint-embedding predictive architecture (Assran et al. 2023), a ViT without a class token."""

from transformers.models.ijepa.configuration_ijepa import IJepaConfig

from ..modeling.classes import Family, long_config
from ..modeling.family.grid_config import LongGridConfig
from ..modeling.family.grid_rule import GridRule

FAMILY = Family(long_config(__name__, LongGridConfig, IJepaConfig), rule=GridRule())
