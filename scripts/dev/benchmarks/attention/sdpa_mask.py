"""PyTorch's scaled_dot_product_attention with the mechanism's mask written out, N×N: the same function without an engine."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..case import AttentionInputs
from ..definition import mask_of
from ..implementations import Implementation, LeftOut, register_implementation

LIMIT = 16384
"""Longest input whose mask is written out."""


@register_implementation("attention", "sdpa-mask")
class SdpaMask(Implementation):
    """SDPA over a dense boolean mask, the same for every head."""

    summary = "torch scaled_dot_product_attention with the mechanism's mask materialised"

    def __init__(self, inputs: AttentionInputs) -> None:
        case = inputs.case
        mask = mask_of(inputs)
        if mask is None:
            raise LeftOut(f"{case.mechanism} is not a mask over positions")
        if case.length > LIMIT:
            raise LeftOut(f"the mask of {case.length} tokens has {case.length**2:,} entries; it is written out up to {LIMIT}")
        index = torch.arange(case.length, device=inputs.hidden.device)
        batch = torch.arange(case.batch, device=index.device).view(-1, 1, 1, 1)
        head = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=index.device)
        self.mask = mask(batch, head, index.view(1, 1, -1, 1), index.view(1, 1, 1, -1)).contiguous()
        self.qkv = self.leaves = inputs.qkv
        self.upstream = inputs.upstream_heads()

    def forward(self) -> Tensor:
        return scaled_dot_product_attention(*self.qkv, attn_mask=self.mask)
