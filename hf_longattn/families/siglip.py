"""LongSiglip: SigLIP (Zhai et al. 2023), a text tower and a vision tower, each with its own mechanisms, lengths and sizes."""

from transformers.models.siglip.configuration_siglip import SiglipConfig

from ..modeling.family.towers_config import towers
from .siglip_text_model import FAMILY as TEXT
from .siglip_vision_model import FAMILY as VISION

FAMILY = towers(__name__, SiglipConfig, "SiglipModel", text=TEXT, vision=VISION)
