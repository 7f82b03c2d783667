"""transformers' BigBird-Pegasus (Zaheer et al. 2020, section 4) becomes LongBigBirdPegasus: the same tensors, the encoder as `bigbird`."""

from __future__ import annotations

from typing import Any

from ...configuration import LongAttentionConfig
from .base import CheckpointConverter, register_checkpoint_converter


@register_checkpoint_converter("bigbird_pegasus")
class BigBirdPegasusConverter(CheckpointConverter):
    """BigBirdPegasusModel and all its heads."""

    model_type = "bigbird_pegasus"
    family = "bigbird_pegasus"
    takes_globals = False

    def config_values(self, config: Any) -> dict[str, Any]:
        values = config.to_dict()
        return {**values, **{name: value for name, value in _long_values(config).items() if name != "long_attention"}}

    def attention(self, config: Any, source_class: str) -> LongAttentionConfig:
        return LongAttentionConfig.from_dict(_long_values(config)["long_attention"])


def _long_values(config: Any) -> dict[str, Any]:
    from ...families.bigbird_pegasus import equivalent_encoder_settings

    return equivalent_encoder_settings(config.to_dict())
