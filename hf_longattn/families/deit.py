"""LongDeiT: data-efficient image Transformer (Touvron et al. 2020), a ViT with a distillation token next to the class token."""

from transformers.models.deit.configuration_deit import DeiTConfig

from ..modeling.classes import Family, long_config
from ..modeling.family.grid_config import LongGridConfig
from ..modeling.family.grid_spec import GridSpec

FAMILY = Family(long_config(__name__, LongGridConfig, DeiTConfig), spec=GridSpec(prefix=2, square=("DeiTForMaskedImageModeling",)))
