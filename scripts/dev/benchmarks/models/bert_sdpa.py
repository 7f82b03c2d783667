"""transformers' BERT, or another base, with scaled_dot_product_attention: what people run today."""

from __future__ import annotations

from typing import Any

from ..implementations import LeftOut, register_implementation
from .inputs import ModelImplementation, ModelInputs

CPU_LENGTH = 16_384
"""Most tokens of a pass on a CPU."""


@register_implementation("model", "sdpa")
class EncoderSdpa(ModelImplementation):
    summary = "BertModel (or another base) of transformers with attn_implementation='sdpa', full attention"
    computes = "full"

    def build(self, inputs: ModelInputs) -> Any:
        if inputs.case.device == "cpu" and inputs.case.length > CPU_LENGTH:
            raise LeftOut("a pass of full attention takes many minutes")
        return inputs.plain
