"""What a layer asks of a GPU, counted on the CPU: few operations, whatever the length, none that waits for the device, none in float64."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest, BlockMask

from hf_longattn import build_mechanism
from hf_longattn.engines.cuda import flex
from hf_longattn.engines.topk import prefiltered_topk_keys
from hf_longattn.functional import prepare, run_batch
from tests.cases import every_case

from .launches import Counting


def fused(kind: object, q: Tensor, k: Tensor, v: Tensor, *, block_mask: BlockMask, return_aux: AuxRequest | None = None, **_: Any) -> Any:
    out = q + v.sum()
    return out if return_aux is None else (out, AuxOutput(lse=out[..., 0].float()))


def asked(name: str, length: int, causal: bool, gradients: bool = False) -> tuple[Counting, Counting | None]:
    """What the second of two layers asks for, and its backward pass."""
    module = build_mechanism(name, num_heads=8, head_dim=64, max_length=length, hidden_size=64).train(gradients)
    q, k, v = (torch.randn(1, 8, length, 64, dtype=torch.bfloat16, requires_grad=gradients) for _ in range(3))
    arguments: dict[str, Any] = {"causal": causal}
    if module.capabilities.takes_hidden_states:
        arguments["hidden_states"] = torch.randn(1, length, 64)
    module, call = prepare(q, k, v, module, **arguments)
    with torch.set_grad_enabled(gradients):
        run_batch(module, q, k, v, call)
        with Counting() as forward:
            out = run_batch(module, q, k, v, call)
        if not gradients:
            return forward, None
        with Counting() as backward:
            out.sum().backward()
        return forward, backward


MOST: list[tuple[str, int, bool, int, int]] = [
    ("linear", 8192, False, 30, 33), ("linear", 8192, True, 40, 64), ("taylor", 2048, True, 56, 88),
    ("performer", 2048, False, 49, 40), ("performer", 2048, True, 69, 73), ("hybrid", 2048, True, 86, 112),
]  # fmt: skip
"""Mechanism, tokens, causal, most operations of the forward and of the backward pass, for 8 heads."""


@pytest.mark.thorough
@pytest.mark.usefixtures("cuda_paths")
@every_case(("name", "length", "causal", "most", "most_backward"), MOST, of=3)
def test_linear_mechanisms_ask_few_gpu_operations_and_no_wait(name: str, length: int, causal: bool, most: int, most_backward: int) -> None:
    forward, backward = asked(name, length, causal, gradients=True)
    assert backward is not None
    assert forward.operations <= most
    assert backward.operations <= most_backward
    assert forward.waits.total() <= int(name == "performer" and causal), "which looks once whether exponents leave the range of fp32"
    assert not backward.waits
    assert not forward.float64 + backward.float64


@pytest.mark.thorough
@pytest.mark.usefixtures("cuda_paths")
@pytest.mark.parametrize("causal", [False, True])
def test_the_search_of_top_k_waits_for_a_gpu_once(causal: bool) -> None:
    q, k = (torch.randn(1, 8, 2048, 64) for _ in range(2))
    with torch.no_grad(), Counting() as counts:
        prefiltered_topk_keys(q, k, None, 64, causal, 0.125)
    assert counts.operations <= (83 if causal else 72)  # causal queries are searched in four parts
    assert counts.waits == Counter({"_local_scalar_dense": 1})


@pytest.mark.usefixtures("cuda_paths")
def test_selected_blocks_never_wait_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "fused_flex", fused)
    forward, _ = asked("block_top_k", 2048, True)
    assert forward.operations <= 132
    assert forward.waits.total() == 0
