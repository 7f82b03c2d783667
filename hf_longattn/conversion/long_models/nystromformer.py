"""transformers' Nyströmformer (Xiong et al. 2021) becomes LongNystromformer: the same tensors, with the value convolution in the
mechanism.

transformers runs it on texts of exactly ``segment_means_seq_len`` tokens, without a padding mask; the result takes any text.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from ...configuration import LongAttentionConfig
from ...inputs.text import VerificationText
from .base import CheckpointConverter, Probe, TensorRename, register_checkpoint_converter

CONVOLUTION = re.compile(r"\.attention\.self\.conv\.weight$")


@register_checkpoint_converter("nystromformer")
class NystromformerConverter(CheckpointConverter):
    """NystromformerModel and all its heads."""

    model_type = "nystromformer"
    family = "nystromformer"
    takes_globals = False

    def config_values(self, config: Any) -> dict[str, Any]:
        return {**config.to_dict(), "attention_probs_dropout_prob": 0.0}  # NystromformerModel applies no dropout to attention weights

    def attention(self, config: Any, source_class: str) -> LongAttentionConfig:
        from ...families.nystromformer import nystrom_of

        return LongAttentionConfig.from_dict(nystrom_of(config))

    def rename(self, name: str, config: Any) -> TensorRename:
        target = CONVOLUTION.sub(".attention.self.long_attention.conv", name)
        return TensorRename(name) if target == name else TensorRename(target, _kernel)

    def probes(self, config: Any, source_class: str, text: VerificationText, length: int) -> list[Probe]:
        if config.num_landmarks == config.segment_means_seq_len:
            return super().probes(config, source_class, text, length)
        length = config.segment_means_seq_len  # the only length that transformers takes
        ids = text.tokens(2 * length).view(2, length)
        inputs = ids[None] if "MultipleChoice" in source_class else ids
        return [Probe("without padding", {"input_ids": inputs}, ids >= 0)]


def _kernel(weight: Tensor) -> Tensor:
    """``(H, 1, K, 1)`` to ``(H, K)``."""
    return weight[:, 0, :, 0]
