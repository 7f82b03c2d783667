"""The implementations of attention alone: ours, PyTorch's over all keys, and flex_attention. Importing this registers them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from hf_longattn.functional import attend

from .case import AttentionInputs
from .definition import MaskMod, mask_of
from .implementations import Implementation, LeftOut, register_implementation


@register_implementation("attention", "longattn")
class Ours(Implementation):
    """``attend(q, k, v, mechanism)``."""

    summary = "attend() of this package"

    def __init__(self, inputs: AttentionInputs) -> None:
        self.inputs = inputs
        self.leaves = inputs.qkv
        self.upstream = inputs.upstream_heads()

    def forward(self) -> Tensor:
        return attend(*self.inputs.qkv, self.inputs.mechanism, causal=self.inputs.case.causal, **self.inputs.beyond)


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


BLOCK = 128


@register_implementation("attention", "flex")
class Flex(Implementation):
    """``torch.compile(flex_attention)`` with a block mask that lists exactly the visited blocks."""

    summary = "torch.compile(flex_attention) with the mechanism's mask and an exact block mask"

    def __init__(self, inputs: AttentionInputs) -> None:
        case = inputs.case
        if case.device == "cpu" and case.backward:
            raise LeftOut("compiled flex_attention has no backward pass on the CPU")
        mask = mask_of(inputs)
        if mask is None:
            raise LeftOut(f"{case.mechanism} is not a mask over positions, which is all that flex_attention's block mask can say")
        self.qkv = self.leaves = inputs.qkv
        self.upstream = inputs.upstream_heads()
        self.mask = block_mask(mask, case.length, case.device)
        torch.compiler.reset()  # else it stops compiling after a few lengths and runs unfused
        self.kernel = torch.compile(flex_attention, dynamic=False)

    def forward(self) -> Tensor:
        q, k, v = self.qkv
        return self.kernel(q, k, v, block_mask=self.mask)


def block_mask(mask: MaskMod, length: int, device: str) -> BlockMask:
    """The block mask of ``mask(b, h, q_idx, kv_idx)`` for one sequence length, block row by block row: never N×N at once.

    The mask must be the same for every batch entry and head.
    """
    kv_idx = torch.arange(length, device=device)
    counts: list[Tensor] = []
    visited: list[Tensor] = []
    full_counts: list[Tensor] = []
    full: list[Tensor] = []
    zero = torch.zeros((), dtype=torch.long, device=device)
    for start in range(0, length, BLOCK):
        q_idx = torch.arange(start, min(start + BLOCK, length), device=device)[:, None]
        seen = mask(zero, zero, q_idx, kv_idx[None]).expand(len(q_idx), length)
        padded = torch.nn.functional.pad(seen, (0, -length % BLOCK)).unflatten(1, (-1, BLOCK))
        whole = padded.all(dim=2).all(dim=0) & (len(q_idx) == BLOCK)
        partial = padded.any(dim=2).any(dim=0) & ~whole
        for blocks, number, order in ((partial, counts, visited), (whole, full_counts, full)):
            number.append(blocks.sum())
            order.append(blocks.to(torch.int8).argsort(descending=True, stable=True))
    some, which, whole_ones, which_whole = (torch.stack(rows).to(torch.int32)[None, None] for rows in (counts, visited, full_counts, full))
    return BlockMask.from_kv_blocks(some, which, whole_ones, which_whole, BLOCK_SIZE=BLOCK, mask_mod=mask, seq_lengths=(length, length))
