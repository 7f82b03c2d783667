"""LongSiglip2: SigLIP 2 for images of different sizes (NaFlex). A text and a vision tower, each with its own mechanisms."""

from transformers.models.siglip2.configuration_siglip2 import Siglip2Config

from ..modeling.classes import Family, long_config
from ..modeling.family.towers_config import LongTowersConfig, TowersRule
from .siglip2_text_model import FAMILY as TEXT
from .siglip2_vision_model import FAMILY as VISION

FAMILY = Family(
    long_config(__name__, LongTowersConfig, Siglip2Config, tower_classes={"text": TEXT.config_class, "vision": VISION.config_class}),
    rule=TowersRule(),
    classes=("Siglip2Model",),
)
