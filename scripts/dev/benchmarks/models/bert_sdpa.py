"""transformers' BERT, or another base, with scaled_dot_product_attention where it has that: what people run today."""

from __future__ import annotations

from typing import Any

from transformers import MODEL_MAPPING

from hf_longattn.families import FAMILIES

from ..implementations import LeftOut, register_implementation
from .inputs import ModelImplementation, ModelInputs

CPU_LENGTH = 16_384
"""Most tokens of a pass on a CPU."""
CPU_LENGTH_OF_ALL_PAIRS = 4096
"""The same where the attention is not fused, and holds several numbers of every pair."""


def most_tokens(base: str) -> int:
    """Tokens up to which the plain model of a base is run on a CPU."""
    fused = MODEL_MAPPING[FAMILIES[base].base_config_class]._supports_sdpa
    return CPU_LENGTH if fused else CPU_LENGTH_OF_ALL_PAIRS


@register_implementation("model", "sdpa")
class EncoderSdpa(ModelImplementation):
    summary = "BertModel (or another base) of transformers with attn_implementation='sdpa' (DeBERTa: 'eager'), full attention"
    computes = "full"

    def build(self, inputs: ModelInputs) -> Any:
        if inputs.case.device == "cpu" and inputs.case.length > most_tokens(inputs.case.base):
            raise LeftOut("a pass of full attention takes many minutes")
        return inputs.plain
