"""Compiled training with dropout survives texts of changing length: the shapes of the plain paths are ones that Inductor can divide."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hf_longattn import attend, build_mechanism, list_mechanisms
from hf_longattn.mechanisms.masked import SparseMechanism
from hf_longattn.mechanisms.registry import mechanism_class

SPARSE = [name for name in list_mechanisms() if issubclass(mechanism_class(name), SparseMechanism)]


@pytest.fixture(autouse=True)
def _compiled_afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", SPARSE)
def test_lengths_change_under_compile_and_dropout(mechanism: str) -> None:
    options = {"window": 64} if "window" in mechanism_class(mechanism).sample else mechanism_class(mechanism).sample
    module = build_mechanism(mechanism, num_heads=1, head_dim=8, hidden_size=8, max_length=1024, **options)
    compiled = torch.compile(lambda *x, **more: attend(*x, mechanism=module, **more))
    for length in (892, 717, 640):
        q, k, v = (torch.randn(2, 1, length, 8, requires_grad=True) for _ in range(3))
        mask = torch.arange(length) < torch.tensor([[length], [length - 50]])
        out = compiled(q, k, v, padding_mask=mask, dropout_p=0.1)
        out.square().mean().backward()
        assert all(bool(x.isfinite().all()) for x in (out, q.grad, k.grad, v.grad) if x is not None)
        assert out.shape == q.shape
