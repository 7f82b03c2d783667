"""transformers' BERT with scaled_dot_product_attention: what people run today."""

from __future__ import annotations

from typing import Any

from ..implementations import register_implementation
from .inputs import ModelImplementation, ModelInputs


@register_implementation("model", "sdpa")
class BertSdpa(ModelImplementation):
    summary = "BertModel of transformers with attn_implementation='sdpa', full attention"
    computes = "full"

    def build(self, inputs: ModelInputs) -> Any:
        return inputs.bert
