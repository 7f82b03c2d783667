"""The self-attention module of transformers' own Longformer, with our projections copied into it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import AttentionInputs
from ..definition import symmetric_window
from ..implementations import Implementation, LeftOut, register_implementation


@register_implementation("attention", "hf-longformer")
class HFLongformer(Implementation):
    """Starts from hidden states, so it is compared with our attention plus the same three projections."""

    summary = "LongformerSelfAttention of transformers, same projections for local and global tokens"
    baseline = "longattn+projections"

    def __init__(self, inputs: AttentionInputs) -> None:
        case = inputs.case
        window = symmetric_window(inputs)
        if window % 2 or case.length % window:
            raise LeftOut(f"it takes lengths that are multiples of an even window, not {case.length} with {window}")
        from transformers.models.longformer.modeling_longformer import LongformerConfig, LongformerSelfAttention

        config = LongformerConfig(
            hidden_size=case.hidden_size,
            num_attention_heads=case.heads,
            num_hidden_layers=1,
            attention_window=[window],
            attention_probs_dropout_prob=0.0,
        )
        self.module = LongformerSelfAttention(config, layer_id=0).to(case.device, case.torch_dtype).requires_grad_(False).eval()
        for name, projection in zip(("query", "key", "value"), inputs.projections, strict=True):
            for target in (getattr(self.module, name), getattr(self.module, f"{name}_global")):
                target.load_state_dict(projection.state_dict())
        self.inputs = inputs
        self.leaves = (inputs.hidden,)
        self.upstream = inputs.upstream_heads()
        tokens = inputs.resolved_globals
        self.is_global = torch.zeros(case.batch, case.length, dtype=torch.bool, device=case.device) if tokens is None else tokens

    def forward(self) -> Tensor:
        output = self.module(
            self.inputs.hidden,
            attention_mask=self.is_global.to(self.inputs.hidden.dtype) * 10000.0,
            is_index_masked=torch.zeros_like(self.is_global),
            is_index_global_attn=self.is_global,
            is_global_attn=bool(self.is_global.any()),
        )[0]
        return self.inputs.split(output)
