"""LongCLIPVision: the image tower of CLIP (Radford et al. 2021), a ViT. It can be loaded from a folder of the whole CLIP."""

from transformers.models.clip.configuration_clip import CLIPVisionConfig

from ..modeling.classes import Family, long_config
from ..modeling.family.grid_config import LongGridConfig
from ..modeling.family.grid_spec import GridSpec

FAMILY = Family(
    long_config(__name__, LongGridConfig, CLIPVisionConfig),
    spec=GridSpec(prefix=1),
    classes=("CLIPVisionModel", "CLIPVisionModelWithProjection"),
)
