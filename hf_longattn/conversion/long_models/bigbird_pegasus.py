"""transformers' BigBird-Pegasus (Zaheer et al. 2020, section 4) becomes LongBigBirdPegasus: the same tensors, the encoder as `bigbird`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...configuration import LongAttentionConfig
from ...inputs.text import VerificationText
from .base import CheckpointConverter, Probe, register_checkpoint_converter, with_decoder


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

    def segmented(self, ids: Tensor, real: Tensor, config: Any, source_class: str) -> Tensor:
        """For classification: texts with one end token, as the last token. The head reads its state."""
        if not source_class.endswith("ForSequenceClassification"):
            return ids
        ids = ids.masked_fill(ids == config.eos_token_id, config.eos_token_id + 1)
        for row, count in enumerate(real.sum(-1).tolist()):
            ids[row, count - 1] = config.eos_token_id
        return ids

    def probes(self, config: Any, source_class: str, text: VerificationText, length: int) -> list[Probe]:
        probes = super().probes(config, source_class, text, length)
        decodes_text = source_class.endswith(("ForSequenceClassification", "ForCausalLM"))  # the decoder reads the text itself
        return probes if decodes_text else with_decoder(probes, config)


def _long_values(config: Any) -> dict[str, Any]:
    from ...families.bigbird_pegasus import equivalent_encoder_settings

    return equivalent_encoder_settings(config.to_dict())
