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


@every_cell("causal", [False, True])
@every_cell("selection", ["strided", "block_strided", "max_norm"])
def test_lsg(selection: str, causal: bool) -> None:
    length, size, factor, beyond = 512, 32, 4, 2
    q, k, v = tensors(length)
    place, head = torch.arange(length), torch.arange(3).view(1, 3, 1)
    is_global = torch.rand(2, length) < 0.02
    if selection == "max_norm":
        norms = k.detach().norm(dim=-1).masked_fill(is_global[:, None], -1.0)
        norms = norms.unflatten(2, (-1, beyond * size // factor))  # cells of as many tokens as sparse keys are seen
        chosen = (norms >= norms.topk(beyond * size // factor // factor, -1).values[..., -1:]).flatten(2)
    else:
        chosen = (place % factor == head % factor) if selection == "strided" else place % size // (size // factor) == head % factor
    away = (place[:, None] // size - place // size).abs()
    mask = (away <= 1) | ((away <= 1 + beyond) & chosen[:, :, None]) | is_global[:, None, None] | is_global[:, None, :, None]
    if causal:
        mask = mask & torch.ones(length, length, dtype=torch.bool).tril()
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    options = {"block_size": size, "sparse_block_size": beyond * size // factor, "sparsity_factor": factor, "selection": selection}
    same(attend(q, k, v, "lsg", global_mask=is_global, causal=causal, **options), expected, (q, k, v))


@pytest.mark.parametrize("selection", ["average_pooling", "lsh"])
def test_lsg_over_appended_means(selection: str) -> None:
    """Clusters of one token are the token itself, so that a factor of 1 sees whole blocks beyond the local ones."""
    q, k, v = tensors(512)
    block = torch.arange(512) // 32
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=(block[:, None] - block).abs() <= 3)
    if selection == "average_pooling":
        options = {"block_size": 32, "sparse_block_size": 64, "sparsity_factor": 1, "selection": selection, "global_tokens": ()}
        same(attend(q, k, v, "lsg", **options), expected, (q, k, v))
        return
    # One cluster per block: its mean, appended as a further key.
    means = [x.unflatten(2, (16, 32)).mean(3) for x in (k, v)]
    away = (block[:, None] - block).abs() <= 1
    far = (block[:, None] - torch.arange(16)).abs()
    mask = torch.cat([away, (far >= 2) & (far <= 3)], 1)
    expected = F.scaled_dot_product_attention(q, torch.cat([k, means[0]], 2), torch.cat([v, means[1]], 2), attn_mask=mask)
    options = {"block_size": 32, "sparse_block_size": 2, "sparsity_factor": 32, "selection": selection, "global_tokens": ()}
    same(attend(q, k, v, "lsg", **options), expected, (q, k, v))
