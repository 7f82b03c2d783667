"""LongDinov2WithRegisters: DINOv2 with register tokens after the class token (Darcet et al. 2023)."""

from transformers.models.dinov2_with_registers.configuration_dinov2_with_registers import Dinov2WithRegistersConfig

from ..modeling.classes import Family, long_config
from ..modeling.family.grid_config import LongGridConfig
from ..modeling.family.grid_rule import GridRule

FAMILY = Family(
    long_config(__name__, LongGridConfig, Dinov2WithRegistersConfig),
    backbone_classes=("Dinov2WithRegistersBackbone",),
    rule=GridRule(prefix=lambda config: 1 + config.num_register_tokens, interpolates=False),
)
