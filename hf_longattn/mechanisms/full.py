"""Full softmax attention: softmax(Q Kᵀ · scale) V over all keys (Vaswani et al. 2017, equation 1)."""

from __future__ import annotations

from torch import Tensor

from ..engines.batch import in_graph
from ..engines.block_sparse import full_attention
from ..engines.call import AttentionCall, MaskMod, Pattern, clear_padding
from ..positions.relative import SelfExtend
from .common.capabilities import About
from .common.masked import SparseMechanism
from .common.registry import register_mechanism


@register_mechanism("full")
class Full(SparseMechanism):
    about = About(
        summary="softmax attention over all tokens",
        paper="Vaswani et al. 2017, Attention Is All You Need, eq. 1",
        when="short inputs, and a few layers that must see everything, among layers of another mechanism",
        engine="dense",
        cost="N²",
        covering=lambda length, causal: {},
    )
    capabilities = SparseMechanism.capabilities.but(images="any", exports=True)
    per_head_tensors = ()
    forward_is_mask = True

    def pattern(self, causal: bool) -> Pattern:
        return Pattern.everything(causal)

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        # True for every pair. Not q_idx >= 0: if cross-attention has more queries than keys, the first queries have
        # negative indices.
        return lambda b, h, q_idx, kv_idx: (q_idx == q_idx) & (kv_idx >= 0)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        # Self-Extend changes only pairs beyond its window. A graph is for all lengths, so it always includes it.
        if isinstance(self.relative, SelfExtend) and (in_graph() or k.shape[2] > self.relative.values["window"]):
            return self.relative.attention(*clear_padding(q, k, v, call))
        return full_attention(q, k, v, call, cross=self.is_cross_attention)
