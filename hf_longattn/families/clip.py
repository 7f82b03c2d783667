"""LongCLIP: CLIP (Radford et al. 2021), a text tower and a vision tower, each with its own mechanisms, lengths and sizes."""

from transformers.models.clip.configuration_clip import CLIPConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.definition import Family, long_config
from ..modeling.family.towers_config import LongTowersConfig, TowersRule
from .clip_text_model import LongCLIPTextConfig
from .clip_vision_model import LongCLIPVisionConfig

FAMILY = Family(
    long_config(__name__, LongTowersConfig, CLIPConfig, tower_classes={"text": LongCLIPTextConfig, "vision": LongCLIPVisionConfig}),
    rule=TowersRule(),
    classes=("CLIPModel",),
)

__getattr__ = lazy_classes(FAMILY, globals())
