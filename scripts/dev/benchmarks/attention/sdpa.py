"""PyTorch's scaled_dot_product_attention over all keys: the honest baseline that sparse attention has to beat."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..case import AttentionInputs
from ..implementations import Implementation, register_implementation


@register_implementation("attention", "sdpa")
class Sdpa(Implementation):
    """Full (or causal) softmax attention by the fused kernel of the device."""

    summary = "torch scaled_dot_product_attention, full softmax attention"
    computes = "full"

    def __init__(self, inputs: AttentionInputs) -> None:
        self.qkv = self.leaves = inputs.qkv
        self.causal = inputs.case.causal
        self.upstream = inputs.upstream_heads()

    def forward(self) -> Tensor:
        return scaled_dot_product_attention(*self.qkv, is_causal=self.causal)
