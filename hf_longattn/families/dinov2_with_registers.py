"""LongDinov2WithRegisters: DINOv2 with register tokens after the class token (Darcet et al. 2023)."""

from transformers.models.dinov2_with_registers.configuration_dinov2_with_registers import Dinov2WithRegistersConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.definition import Family
from ..modeling.family.grid_config import LongGridConfig
from ..modeling.family.grid_rule import GridRule


class LongDinov2WithRegistersConfig(LongGridConfig, Dinov2WithRegistersConfig):
    """Dinov2WithRegistersConfig with ``long_attention``."""

    model_type = "long_dinov2_with_registers"


FAMILY = Family(
    LongDinov2WithRegistersConfig,
    backbone_classes=("Dinov2WithRegistersBackbone",),
    rule=GridRule(prefix=lambda config: 1 + config.num_register_tokens, interpolates=False),
)

__getattr__ = lazy_classes(FAMILY, globals())
