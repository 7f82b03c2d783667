"""transformers' LED (Beltagy et al. 2020, section 7) becomes LongBart: Longformer's self-attention in the encoder of a BART.

LED's position tables start with position 0, BART's with two unused rows; no head marks global tokens itself.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from ...configuration import LongAttentionConfig
from .base import CheckpointConverter, TensorRename, layer_options, register_checkpoint_converter

NOT_BARTS = ("attention_window", "max_encoder_position_embeddings")
OFFSET = 2
PARTS: dict[str, Any] = {
    r"^led\.": "model.",
    r"\.longformer_self_attn\.(query|key|value)_global\.": r".long_attention.separate.\1.",
    r"\.longformer_self_attn\.(query|key|value)\.": lambda match: f".{match[1][0]}_proj.",
    r"\.self_attn\.output\.": ".self_attn.out_proj.",
}


@register_checkpoint_converter("led")
class LEDConverter(CheckpointConverter):
    """LEDModel and its heads."""

    model_type = "led"
    family = "bart"

    def base_class(self, source_class: str) -> str | None:
        return source_class.replace("LED", "Bart", 1) if source_class.startswith("LED") else None

    def config_values(self, config: Any) -> dict[str, Any]:
        values = {name: value for name, value in config.to_dict().items() if name not in NOT_BARTS}
        defaults = {"scale_embedding": False, "forced_eos_token_id": None}  # BART has other defaults, or none
        return {**defaults, **values, "max_position_embeddings": config.max_encoder_position_embeddings}

    def attention(self, config: Any, source_class: str) -> LongAttentionConfig:
        return layer_options("longformer", "window", config.attention_window, global_tokens=(), separate_global=True)

    def rename(self, name: str, config: Any) -> TensorRename:
        target = name
        for pattern, replacement in PARTS.items():
            target = re.sub(pattern, replacement, target)
        return TensorRename(target, _two_rows_in_front if name.endswith("embed_positions.weight") else None)


def _two_rows_in_front(table: Tensor) -> Tensor:
    """``(P, d)`` -> ``(P + 2, d)``: BART's tables start with two unused rows."""
    return nn.functional.pad(table, (0, 0, OFFSET, 0))
