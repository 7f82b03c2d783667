"""LongCLIP: CLIP (Radford et al. 2021), a text tower and a vision tower, each with its own mechanisms, lengths and sizes."""

from transformers.models.clip.configuration_clip import CLIPConfig

from ..modeling.classes import Family, long_config
from ..modeling.family.towers_config import LongTowersConfig, TowersRule
from .clip_text_model import FAMILY as TEXT
from .clip_vision_model import FAMILY as VISION

FAMILY = Family(
    long_config(__name__, LongTowersConfig, CLIPConfig, tower_classes={"text": TEXT.config_class, "vision": VISION.config_class}),
    rule=TowersRule(),
    classes=("CLIPModel",),
)
