"""LongDinov2: DINOv2 (Oquab et al. 2023), a ViT for dense features. The base always resizes the position table to the image."""

from transformers.models.dinov2.configuration_dinov2 import Dinov2Config

from ..modeling.classes import Family, long_config
from ..modeling.family.grid_config import LongGridConfig
from ..modeling.family.grid_spec import GridSpec

FAMILY = Family(
    long_config(__name__, LongGridConfig, Dinov2Config), backbone_classes=("Dinov2Backbone",), spec=GridSpec(prefix=1, interpolates=False)
)
