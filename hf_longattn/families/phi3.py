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
        """Keep the rope type ``yarn`` if there are no factors of longrope. The base always reads ``yarn`` as an old
        name of ``longrope``."""
        rope_type = (self.rope_parameters or {}).get("rope_type")
        other_arguments = super().convert_rope_params_to_dict(**kwargs)
        if rope_type == "yarn" and "short_factor" not in self.rope_parameters:
            self.rope_parameters["rope_type"] = rope_type
        return other_arguments

    def validate_rope(self) -> None:
        """Allow every rope type of transformers. The base's rotary embedding supports them, but its config allows only
        ``longrope``."""
        if self.rope_parameters.get("rope_type") == "longrope":
            super().validate_rope()
        else:
            PreTrainedConfig.validate_rope(self)


FAMILY = Family(LongPhi3Config, rope=True)
