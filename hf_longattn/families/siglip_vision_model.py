"""LongSiglipVision: the image tower of SigLIP (Zhai et al. 2023), a ViT without a class token, whose head pools the patches."""

from transformers.models.siglip.configuration_siglip import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipAttention

from ..modeling.attach.custom_attention import HandsKeywordsDown, replacing
from ..modeling.classes import Family, long_config
from ..modeling.family.grid_config import LongGridConfig
from ..modeling.family.grid_spec import GridSpec

FAMILY = Family(
    long_config(__name__, LongGridConfig, SiglipVisionConfig),
    spec=GridSpec(),
    classes=("SiglipVisionModel",),
    mixin=replacing(__name__, {SiglipAttention: HandsKeywordsDown}),
)
