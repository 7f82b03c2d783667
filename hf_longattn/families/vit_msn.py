"""LongViTMSN: masked siamese networks (Assran et al. 2022), a ViT."""

from transformers.models.vit_msn.configuration_vit_msn import ViTMSNConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.definition import Family
from ..modeling.family.grid_config import LongGridConfig
from ..modeling.family.grid_rule import GridRule


class LongViTMSNConfig(LongGridConfig, ViTMSNConfig):
    """ViTMSNConfig with ``long_attention``."""

    model_type = "long_vit_msn"


FAMILY = Family(LongViTMSNConfig, rule=GridRule(prefix=1))

__getattr__ = lazy_classes(FAMILY, globals())
