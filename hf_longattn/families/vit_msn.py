"""LongViTMSN: masked siamese networks (Assran et al. 2022), a ViT."""

from transformers.models.vit_msn.configuration_vit_msn import ViTMSNConfig

from ..modeling.classes import Family, long_config
from ..modeling.family.grid_config import LongGridConfig
from ..modeling.family.grid_rule import GridRule

FAMILY = Family(long_config(__name__, LongGridConfig, ViTMSNConfig), rule=GridRule(prefix=1))
