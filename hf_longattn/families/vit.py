"""LongViT: Vision Transformer (Dosovitskiy et al. 2020), patches of a picture after a class token, one learned position table."""

from transformers.models.vit.configuration_vit import ViTConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.definition import Family
from ..modeling.family.grid_config import LongGridConfig
from ..modeling.family.grid_rule import GridRule


class LongViTConfig(LongGridConfig, ViTConfig):
    """ViTConfig with ``long_attention``."""

    model_type = "long_vit"


FAMILY = Family(LongViTConfig, rule=GridRule(prefix=1, square=("ViTForMaskedImageModeling",)))

__getattr__ = lazy_classes(FAMILY, globals())
