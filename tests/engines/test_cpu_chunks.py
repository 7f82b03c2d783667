"""Tokens in chunks of a sorted order: every round's neighbours once, never a token itself, and gradients."""

import pytest
import torch
from torch import Tensor

from hf_longattn.engines.common.batch import Batch
from hf_longattn.engines.common.call import AttentionCall
from hf_longattn.engines.common.dense import masked_softmax
from hf_longattn.engines.cpu.chunks import chunk_attention
from hf_longattn.engines.cpu.flash import stable_order


def meetings(buckets: Tensor, real: Tensor, size: int, before: int, after: int) -> Tensor:
    """In how many rounds every token meets every other, ``(N, N)``, for ``buckets (R, N)`` and ``real (N,)``."""
    length = buckets.shape[-1]
    times = torch.zeros(length, length, dtype=torch.int64)
    for of_round in buckets.tolist():
        order = sorted((j for j in range(length) if real[j]), key=lambda j: (of_round[j], j))
        chunks = [order[first : first + size] for first in range(0, len(order), size)]
        for number, chunk in enumerate(chunks):
            for near in {(number + offset) % len(chunks) for offset in range(-before, after + 1)}:
                times[torch.tensor(chunk)[:, None], torch.tensor(chunks[near])] += 1
    return times.fill_diagonal_(0)


@pytest.mark.parametrize(("before", "after"), [(1, 0), (0, 0), (1, 1), (0, 2)])
@pytest.mark.parametrize(("length", "size"), [(40, 8), (43, 8), (9, 8), (8, 8), (5, 16), (1, 4), (17, 1)])
def test_outputs_and_gradients_equal_the_definition(length: int, size: int, before: int, after: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, length, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    buckets = torch.randint(4, (3, 2, 3, length))
    real = torch.ones(3, length, dtype=torch.bool)
    real[1], real[2] = torch.rand(length) < 0.6, False
    call = AttentionCall(batch=Batch(real), scale=0.3)
    out = chunk_attention(q, k, v, buckets, size, call, before=before, after=after)
    times = torch.stack([torch.stack([meetings(head, real[b], size, before, after) for head in buckets[b]]) for b in range(3)])
    alone = torch.eye(length, dtype=torch.bool) & ~times.any(-1, keepdim=True) & real[:, None, None]
    times = times + alone.long()
    expected = masked_softmax(q @ k.transpose(-1, -2) * 0.3 + times.clamp(min=1).log(), times > 0) @ v
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    for a, b in zip(*(torch.autograd.grad((x * upstream).sum(), (q, k, v)) for x in (out, expected)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("most", [5, 1 << 15])
def test_equal_numbers_keep_their_order(most: int) -> None:
    numbers = torch.randint(-1, 6, (2, 3, 50))
    assert torch.equal(stable_order(numbers, most), numbers.argsort(dim=-1, stable=True))
