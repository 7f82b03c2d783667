"""LongCLIPVision: the picture tower of CLIP (Radford et al. 2021), a ViT. It can be loaded from a folder of the whole CLIP."""

from transformers.models.clip.configuration_clip import CLIPVisionConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.definition import Family
from ..modeling.family.grid_config import LongGridConfig
from ..modeling.family.grid_rule import GridRule


class LongCLIPVisionConfig(LongGridConfig, CLIPVisionConfig):
    """CLIPVisionConfig with ``long_attention``."""

    model_type = "long_clip_vision_model"


FAMILY = Family(LongCLIPVisionConfig, rule=GridRule(prefix=1), classes=("CLIPVisionModel", "CLIPVisionModelWithProjection"))

__getattr__ = lazy_classes(FAMILY, globals())
