"""transformers' BERT, or another base, with scaled_dot_product_attention: what people run today."""

from __future__ import annotations

from typing import Any

from ..implementations import register_implementation
from .inputs import ModelImplementation, ModelInputs


@register_implementation("model", "sdpa")
class EncoderSdpa(ModelImplementation):
    summary = "BertModel (or another base) of transformers with attn_implementation='sdpa', full attention"
    computes = "full"

    def build(self, inputs: ModelInputs) -> Any:
        return inputs.plain
