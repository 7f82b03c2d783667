"""Compiled training with dropout survives texts of changing length: the shapes of the plain paths are ones that Inductor can divide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, list_mechanisms
from hf_longattn.mechanisms.common.registry import mechanism_class
from tests.reference.small_models import long_model


@pytest.fixture(autouse=True)
def _compiled_afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", [*list_mechanisms(engine="block_sparse", grid=False), "full", "adaptive_span", "strided"])
def test_compiled_training_with_dropout_survives_changing_lengths(mechanism: str) -> None:
    options = {"window": 64} if "window" in mechanism_class(mechanism).about.sample else mechanism_class(mechanism).about.sample
    module = build_mechanism(mechanism, num_heads=1, head_dim=8, hidden_size=8, max_length=1024, **options)

    def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, hidden_states: Tensor) -> Tensor:
        more = {"hidden_states": hidden_states} if module.capabilities.takes_hidden_states else {}
        return attend(q, k, v, module, causal=module.causal is True, padding_mask=mask, dropout_p=0.1, **more)

    compiled = torch.compile(call)
    for length in (892, 717):
        q, k, v = (torch.randn(2, 1, length, 8, requires_grad=True) for _ in range(3))
        mask = torch.arange(length) < torch.tensor([[length], [length - 50]])
        out = compiled(q, k, v, mask, torch.randn(2, length, 8))
        out.square().mean().backward()
        assert all(bool(x.isfinite().all()) for x in (out, q.grad, k.grad, v.grad) if x is not None)
        assert out.shape == q.shape


@pytest.mark.slow
@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
def test_a_model_that_trains_with_dropout_is_one_graph(tokens: bool, on_gpu: bool, request: pytest.FixtureRequest) -> None:
    if on_gpu:
        request.getfixturevalue("cuda_paths")
    plan = {"mechanism": "longformer", "window": 128}
    model = long_model("bert", None, plan, attention_probs_dropout_prob=0.1, max_position_embeddings=1024).train()
    graphs: list[Any] = []

    def keep(module: Any, _: Any) -> Any:
        graphs.append(module)
        return module.forward

    ids, mask = torch.randint(5, 90, (2, 640)), torch.ones(2, 640, dtype=torch.long)
    mask[1, 500:] = 0
    arguments = {"global_attention_mask": (torch.arange(640) < 4).long().expand(2, -1)} if tokens else {}
    out = torch.compile(model, backend=keep, fullgraph=True)(ids, attention_mask=mask, **arguments)
    out[0].sum().backward()
    assert len(graphs) == 1
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
