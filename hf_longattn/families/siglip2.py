"""LongSiglip2: SigLIP 2 for images of different sizes (NaFlex). A text and a vision tower, each with its own mechanisms."""

from transformers.models.siglip2.configuration_siglip2 import Siglip2Config

from ..modeling.family.towers_config import towers
from .siglip2_text_model import FAMILY as TEXT
from .siglip2_vision_model import FAMILY as VISION

FAMILY = towers(__name__, Siglip2Config, "Siglip2Model", text=TEXT, vision=VISION)
