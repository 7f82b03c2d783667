"""LongViT: Vision Transformer (Dosovitskiy et al. 2020), patches of an image after a class token, one learned position table."""

from transformers.models.vit.configuration_vit import ViTConfig

from ..modeling.classes import Family, long_config
from ..modeling.family.grid_config import LongGridConfig
from ..modeling.family.grid_spec import GridSpec

FAMILY = Family(long_config(__name__, LongGridConfig, ViTConfig), spec=GridSpec(prefix=1, square=("ViTForMaskedImageModeling",)))
