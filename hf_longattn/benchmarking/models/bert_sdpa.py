"""transformers' BERT with scaled_dot_product_attention: what people run today."""

from __future__ import annotations

from typing import Any

from ..sides import register_side
from .inputs import ModelInputs, ModelSide


@register_side("model", "sdpa")
class BertSdpa(ModelSide):
    summary = "BertModel of transformers with attn_implementation='sdpa', full attention"
    computes = "full"

    def build(self, inputs: ModelInputs) -> Any:
        return inputs.bert
