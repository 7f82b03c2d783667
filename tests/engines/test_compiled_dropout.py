"""Compiled training with dropout survives texts of changing length: the shapes of the plain paths are ones that Inductor can divide."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, list_mechanisms
from hf_longattn.mechanisms.common.registry import mechanism_class


@pytest.fixture(autouse=True)
def _compiled_afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", [*list_mechanisms(engine="block_sparse", grid=False), "full", "adaptive_span", "strided"])
def test_compiled_training_with_dropout_survives_changing_lengths(mechanism: str) -> None:
    options = {"window": 64} if "window" in mechanism_class(mechanism).sample else mechanism_class(mechanism).sample
    module = build_mechanism(mechanism, num_heads=1, head_dim=8, hidden_size=8, max_length=1024, **options)

    def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, hidden_states: Tensor) -> Tensor:
        more = {"hidden_states": hidden_states} if module.traits.takes_hidden_states else {}
        return attend(q, k, v, module, causal=module.causal is True, padding_mask=mask, dropout_p=0.1, **more)

    compiled = torch.compile(call)
    for length in (892, 717):
        q, k, v = (torch.randn(2, 1, length, 8, requires_grad=True) for _ in range(3))
        mask = torch.arange(length) < torch.tensor([[length], [length - 50]])
        out = compiled(q, k, v, mask, torch.randn(2, length, 8))
        out.square().mean().backward()
        assert all(bool(x.isfinite().all()) for x in (out, q.grad, k.grad, v.grad) if x is not None)
        assert out.shape == q.shape
