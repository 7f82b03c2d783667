"""Mechanisms that choose keys by their scores equal PyTorch's attention under the mask of what they choose."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_longattn import attend
from tests.cells import every_cell


def tensors(length: int) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return tuple(torch.randn(2, 3, length, 16, requires_grad=True) for _ in range(3))


def same(out: Tensor, expected: Tensor, leaves: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    direction = torch.randn_like(out)
    for a, b in zip(*(torch.autograd.grad((x * direction).sum(), leaves) for x in (out, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=0)


@pytest.mark.thorough
@every_cell("causal", [False, True])
@every_cell(("length", "num_keys"), [(400, 1), (400, 30), (400, 399), (400, 400), (31, 1000)])
def test_top_k(length: int, num_keys: int, causal: bool) -> None:
    q, k, v = tensors(length)
    scores = (q @ k.transpose(-1, -2)).detach()
    seen = torch.ones(length, length, dtype=torch.bool).tril() if causal else torch.ones(length, length, dtype=torch.bool)
    chosen = scores.masked_fill(~seen, float("-inf")).topk(min(num_keys, length), -1).indices
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, chosen, True) & seen
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    same(attend(q, k, v, "top_k", num_keys=num_keys, causal=causal), expected, (q, k, v))


@pytest.mark.thorough
@every_cell("causal", [False, True])
@every_cell(("length", "block_size", "num_blocks"), [(512, 32, 1), (512, 32, 4), (512, 64, 3), (512, 16, 32), (100, 128, 1)])
def test_block_top_k(length: int, block_size: int, num_blocks: int, causal: bool) -> None:
    """As MoBA states it: the own block has the gate +inf, blocks of the future have -inf, and the best num_blocks gates are open."""
    q, k, v = tensors(length)
    blocks = -(-length // block_size)
    own = torch.arange(length) // block_size
    means = F.pad(k.detach(), (0, 0, 0, blocks * block_size - length)).unflatten(2, (blocks, block_size)).mean(3)
    gates = q.detach() @ means.transpose(-1, -2)
    if causal:
        gates = gates.masked_fill(torch.arange(blocks) > own[:, None], float("-inf"))
    gates = gates.masked_fill(torch.arange(blocks) == own[:, None], float("inf"))
    best = gates.topk(min(num_blocks, blocks), -1)
    open_ = torch.zeros_like(gates, dtype=torch.bool).scatter(-1, best.indices, best.values > float("-inf"))
    mask = open_[..., own]
    if causal:
        mask = mask & torch.ones(length, length, dtype=torch.bool).tril()
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    same(attend(q, k, v, "block_top_k", block_size=block_size, num_blocks=num_blocks, causal=causal), expected, (q, k, v))
