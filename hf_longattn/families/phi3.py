"""LongPhi3: Phi-3 (Abdin et al. 2024), causal, fused projection, rotary positions. Some configs have a sliding
window."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig
from transformers.models.phi3.configuration_phi3 import Phi3Config

from ..modeling.classes import Family
from ..modeling.family.long_config import LongConfig


class LongPhi3Config(LongConfig, Phi3Config):
    """Phi3Config with ``long_attention``."""

    model_type = "long_phi3"

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """As in the base, but ``yarn`` without longrope's factors means YaRN. The base reads it as an old name of
        ``longrope``."""
        rope_type = (self.rope_parameters or {}).get("rope_type")
        left = super().convert_rope_params_to_dict(**kwargs)
        if rope_type == "yarn" and "short_factor" not in self.rope_parameters:
            self.rope_parameters["rope_type"] = rope_type
        return left

    def validate_rope(self) -> None:
        """Allow every rope type of transformers. The base allows only ``longrope``, but its rotary embedding supports
        all."""
        if self.rope_parameters.get("rope_type") == "longrope":
            super().validate_rope()
        else:
            PreTrainedConfig.validate_rope(self)


FAMILY = Family(LongPhi3Config, rope=True)
