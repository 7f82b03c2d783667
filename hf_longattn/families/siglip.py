"""LongSiglip: SigLIP (Zhai et al. 2023), a text tower and a vision tower, each with its own mechanisms, lengths and sizes."""

from transformers.models.siglip.configuration_siglip import SiglipConfig

from ..modeling.classes import Family, long_config
from ..modeling.family.towers_config import LongTowersConfig, TowersRule
from .siglip_text_model import FAMILY as TEXT
from .siglip_vision_model import FAMILY as VISION

FAMILY = Family(
    long_config(__name__, LongTowersConfig, SiglipConfig, tower_classes={"text": TEXT.config_class, "vision": VISION.config_class}),
    rule=TowersRule(),
    classes=("SiglipModel",),
)
