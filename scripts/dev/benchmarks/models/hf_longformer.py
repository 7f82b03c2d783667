"""transformers' own Longformer with the same weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LongformerConfig, LongformerModel

from hf_longattn.mechanisms.common.masked import SparseMechanism

from ..case import AttentionInputs
from ..implementations import LeftOut, register_implementation
from .inputs import ModelImplementation, ModelInputs

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
