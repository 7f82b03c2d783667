"""transformers' LongT5 (Guo et al. 2022) with local attention becomes LongAttentionT5: a window in T5's encoder. Transient-global
attention, which adds averages of blocks to the keys, is refused.
"""

from __future__ import annotations

import re
from typing import Any

from ...configuration import LongAttentionConfig
from ...errors import CheckpointError
from .base import CheckpointConverter, TensorRename, register_checkpoint_converter

NOT_T5S = ("local_radius", "global_block_size", "encoder_attention_type")
TRAINED_LENGTH = 4096
"""Length in tokens with which LongT5 was pre-trained, used if the config does not say."""


@register_checkpoint_converter("longt5")
class LongT5Converter(CheckpointConverter):
    """LongT5Model and its heads."""

    model_type = "longt5"
    family = "t5"
    takes_globals = False

    def base_class(self, source_class: str) -> str | None:
        return source_class.removeprefix("Long") if source_class.startswith("LongT5") else None

    def config_values(self, config: Any) -> dict[str, Any]:
        values = {name: value for name, value in config.to_dict().items() if name not in NOT_T5S}
        length = values.get("n_positions") or TRAINED_LENGTH
        return {**values, "n_positions": length, "tie_word_embeddings": config.scale_decoder_outputs}

    def attention(self, config: Any, source_class: str) -> LongAttentionConfig:
        if config.encoder_attention_type != "local":
            raise CheckpointError(
                f"The encoder of this {source_class} has encoder_attention_type={config.encoder_attention_type!r}: its tokens also see the "
                f"averages of blocks of {config.global_block_size} tokens, which no mechanism has; convert a LongT5 with local attention "
                "(google/long-t5-local-base), or a T5."
            )
        return LongAttentionConfig("window", window=2 * config.local_radius)

    def rename(self, name: str, config: Any) -> TensorRename:
        return TensorRename(re.sub(r"\.LocalSelfAttention\.", ".SelfAttention.", name))
