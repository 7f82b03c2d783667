"""Whole encoders: ours, transformers' base, and transformers' Longformer. Importing this registers them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_MAPPING, LongformerConfig, LongformerModel

from hf_longattn.families import FAMILIES
from hf_longattn.mechanisms.common.masked import SparseMechanism

from ..case import AttentionInputs
from ..implementations import LeftOut, register_implementation
from .inputs import ModelImplementation, ModelInputs


@register_implementation("model", "longattn")
class LongEncoder(ModelImplementation):
    summary = "LongBertModel (or that of another base) of this package"

    def build(self, inputs: ModelInputs) -> Any:
        config = inputs.family.config_class(**inputs.sizes(), long_attention={"mechanism": inputs.case.mechanism, **inputs.case.options})
        long_class = inputs.family.long_class_of(type(inputs.plain))
        assert long_class is not None, "the plain model is the family's base model"
        model = long_class(config)
        model.load_state_dict(inputs.plain.state_dict(), strict=False)  # a mechanism's own parameters keep their start values
        return model

    def arguments(self) -> dict[str, Any]:
        return {} if self.inputs.global_attention_mask is None else {"global_attention_mask": self.inputs.global_attention_mask}


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


OFFSET = 2  # its position table starts with the rows of padding, as RoBERTa's does


@register_implementation("model", "hf-longformer")
class HFLongformer(ModelImplementation):
    summary = "LongformerModel of transformers, same projections for local and global tokens"

    def build(self, inputs: ModelInputs) -> Any:
        case = inputs.case
        attention = AttentionInputs(case.at(layers=1))
        mechanism = attention.mechanism
        band = mechanism.pattern(case.causal) if isinstance(mechanism, SparseMechanism) else None
        if band is None or band.left != band.right or band.left >= case.length:
            raise LeftOut(f"it has symmetric windows with global tokens, not {case.mechanism} with {case.options or 'its default options'}")
        self.tokens = attention.resolved_globals
        sizes = inputs.sizes() | {"max_position_embeddings": case.length + OFFSET, "pad_token_id": 1, "layer_norm_eps": 1e-12}
        model = LongformerModel(LongformerConfig(**sizes, type_vocab_size=2, attention_window=2 * band.left), add_pooling_layer=False)
        weights: dict[str, Tensor] = {name: x for name, x in inputs.plain.state_dict().items() if not name.startswith("pooler.")}
        table = weights["embeddings.position_embeddings.weight"]
        weights["embeddings.position_embeddings.weight"] = torch.cat([table[:OFFSET], table])
        for name in list(weights):
            head, _, projection = name.rpartition(".self.")
            if head:
                part, _, kind = projection.partition(".")
                weights[f"{head}.self.{part}_global.{kind}"] = weights[name]
        model.load_state_dict(weights, strict=True)
        return model

    def trains(self, name: str) -> bool:
        return super().trains(name) and ("_global." not in name or self.tokens is not None)

    def arguments(self) -> dict[str, Any]:
        return {} if self.tokens is None else {"global_attention_mask": self.tokens.long()}
