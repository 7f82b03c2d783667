"""LongSiglip: SigLIP (Zhai et al. 2023), a text tower and a vision tower, each with its own mechanisms, lengths and sizes."""

from transformers.models.siglip.configuration_siglip import SiglipConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.definition import Family, long_config
from ..modeling.family.towers_config import LongTowersConfig, TowersRule
from .siglip_text_model import LongSiglipTextConfig
from .siglip_vision_model import LongSiglipVisionConfig

FAMILY = Family(
    long_config(__name__, LongTowersConfig, SiglipConfig, tower_classes={"text": LongSiglipTextConfig, "vision": LongSiglipVisionConfig}),
    rule=TowersRule(),
    classes=("SiglipModel",),
)

__getattr__ = lazy_classes(FAMILY, globals())
