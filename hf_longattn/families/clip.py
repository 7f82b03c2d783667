"""LongCLIP: CLIP (Radford et al. 2021), a text tower and a vision tower, each with its own mechanisms, lengths and sizes."""

from transformers.models.clip.configuration_clip import CLIPConfig

from ..modeling.family.towers_config import towers
from .clip_text_model import FAMILY as TEXT
from .clip_vision_model import FAMILY as VISION

FAMILY = towers(__name__, CLIPConfig, "CLIPModel", text=TEXT, vision=VISION)
