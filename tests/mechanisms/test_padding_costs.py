"""What padding and packing cost, as ratios of the CPU time of calls in turn: a batch costs what its real tokens cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import Mechanism, attend, build_mechanism

pytestmark = pytest.mark.slow
LENGTH, ROUNDS = 4096, 9
MECHANISMS: dict[str, dict[str, Any]] = {
    "window": {},
    "longformer": {"global_tokens": (0,)},
    "bigbird": {},
    "linear": {},
    "full": {},
}


def fastest(*runs: Callable[[], Any]) -> list[float]:
    """The least CPU time of each, in turns."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(ROUNDS + 1):
        for run, own in zip(runs, times, strict=True):
            begin = time.process_time()
            run()
            if number:  # the first round fills the caches
                own.append(time.process_time() - begin)
    return [min(own) for own in times]


def built(name: str) -> tuple[Mechanism, list[Tensor]]:
    module = build_mechanism(name, num_heads=4, head_dim=64, max_length=LENGTH, **MECHANISMS[name]).eval()
    return module, [torch.randn(2, LENGTH, 4, 64).transpose(1, 2).requires_grad_() for _ in range(3)]


def once(module: Mechanism, tensors: list[Tensor], **arguments: Any) -> Callable[[], Any]:
    """Forward and backward."""
    grad = torch.randn_like(tensors[0])
    return lambda: torch.autograd.grad(attend(*tensors, module, causal=module.name == "linear", **arguments), tensors, grad)


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_padded_batch_costs_what_its_real_tokens_cost(name: str) -> None:
    module, tensors = built(name)
    kept = LENGTH * 6 // 10
    places = torch.arange(LENGTH).expand(2, -1)
    full, right, left = fastest(
        once(module, tensors),
        once(module, tensors, padding_mask=places < kept),
        once(module, tensors, padding_mask=places >= LENGTH - kept),
    )
    assert left <= 1.08 * right, "the tolerance is for the clock"
    assert right <= 0.7 * full


@pytest.mark.parametrize("name", MECHANISMS)
def test_packed_documents_cost_what_they_cost_one_by_one(name: str) -> None:
    module, tensors = built(name)
    sizes = [700, 1000, 350, LENGTH - 2050]
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(sizes)).expand(2, -1)
    alone = [[x[row : row + 1, :, start : start + size].detach().requires_grad_() for x in tensors] for row in range(2)
             for start, size in zip([0, 700, 1700, 2050], sizes, strict=True)]  # fmt: skip
    runs = [once(module, one) for one in alone]

    def one_by_one() -> None:
        for run in runs:
            run()

    packed, separately = fastest(once(module, tensors, documents=documents), one_by_one)
    assert packed <= 1.1 * separately
