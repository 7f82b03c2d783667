"""A band with global tokens, padding anywhere, packed documents and grouped heads is one call of flex_attention on a GPU."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines.cuda import flex
from hf_longattn.engines.dispatch import observe
from tests.cases import every_case

LENGTH = 700
COMPILED = torch.compile(flex_attention, dynamic=False, fullgraph=True)
"""PyTorch's kernel for the CPU, which has a forward pass only."""
MECHANISMS: dict[str, dict[str, Any]] = {
    "longformer": {"mechanism": "longformer", "window": 128},
    "five positions": {"mechanism": "longformer", "window": 100, "global_tokens": (0, 1, 2, 7, 300)},
    "uneven window": {"mechanism": "longformer", "left": 200, "right": 30},
    "sinks": {"mechanism": "window", "window": 90, "num_sinks": 4},
}
PADDING = ("none", "right", "left", "holes", "a whole row")


def real_tokens(padding: str) -> Tensor | None:
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    if padding == "right":
        real[1, LENGTH - 200 :] = False
    elif padding == "left":
        real[1, :333] = False
    elif padding == "holes":
        real[1, :5], real[1, 300:350], real[0, 2] = False, False, False
    elif padding == "a whole row":
        real[1] = False
    return None if padding == "none" else real


def calls(
    name: str, padding: str, causal: bool, tokens: str, packed: bool, heads: int, width: int = 16
) -> tuple[Any, list[Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    options = dict(MECHANISMS[name])
    module = build_mechanism(options.pop("mechanism"), num_heads=4, head_dim=width, **options).eval()
    sizes = (4, heads, heads)
    tensors = [torch.randn(2, h, LENGTH, width, generator=generator, dtype=torch.float64, requires_grad=True) for h in sizes]
    arguments: dict[str, Any] = {"causal": causal, "padding_mask": real_tokens(padding)}
    if tokens == "scattered":
        arguments["global_mask"] = torch.rand(2, LENGTH, generator=generator) < 0.02
    elif tokens == "question":
        arguments["global_mask"] = (torch.arange(LENGTH) < 40).expand(2, -1)
    if packed:
        arguments["documents"] = torch.bucketize(torch.arange(LENGTH), torch.tensor([[130, 384, 390]][0])).expand(2, -1)
    return module, tensors, arguments


CELLS = [
    *itertools.product(["longformer"], PADDING, [False, True], ["positions", "scattered", "question"], [False, True], [4, 2]),
    *itertools.product([*MECHANISMS][1:], PADDING, [False, True], ["positions"], [False, True], [2]),
]


@pytest.mark.usefixtures("cuda_paths", "unfused_flex")
@every_case(("name", "padding", "causal", "tokens", "packed", "heads"), CELLS, of=10)
def test_bands_with_global_tokens_are_one_exact_call(name: str, padding: str, causal: bool, tokens: str, packed: bool, heads: int) -> None:
    module, tensors, arguments = calls(name, padding, causal, tokens, packed, heads)
    paths: list[str] = []
    with observe(lambda _, choice: paths.append(choice.path)):
        out = attend(*tensors, module, **arguments)
    assert [path for path in paths if path not in ("unchanged",)] == ["flex"]
    expected = reference_attend(*tensors, module, **arguments)
    real = real_tokens(padding)
    rows = torch.ones_like(out) if real is None else real[:, None, :, None].double().expand_as(out)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype) * rows
    torch.testing.assert_close(out * rows, expected * rows, atol=1e-12, rtol=0)
    for grad, exact in zip(torch.autograd.grad(out, tensors, weights), torch.autograd.grad(expected, tensors, weights), strict=True):
        torch.testing.assert_close(grad, exact, atol=1e-12, rtol=0)


KERNELS = [
    ("longformer", "left", False, "scattered", False), ("longformer", "holes", True, "question", False),
    ("longformer", "right", False, "positions", True), ("sinks", "none", True, "positions", False),
    ("five positions", "a whole row", False, "positions", True), ("uneven window", "none", False, "positions", True),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("cuda_paths")
@pytest.mark.parametrize(("name", "padding", "causal", "tokens", "packed"), KERNELS)
def test_block_masks_of_one_call_serve_pytorchs_compiled_kernel(
    name: str, padding: str, causal: bool, tokens: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flex, "fused_flex", lambda kind, *tensors, **settings: COMPILED(*tensors, **settings))
    module, tensors, arguments = calls(name, padding, causal, tokens, packed, heads=2)
    with torch.no_grad():
        out = attend(*(x.float() for x in tensors), module, **arguments).double()
        expected, real = reference_attend(*tensors, module, **arguments), real_tokens(padding)
    rows = torch.ones_like(out) if real is None else real[:, None, :, None].double()
    torch.testing.assert_close(out * rows, expected * rows, atol=5e-6, rtol=0)


@pytest.mark.usefixtures("cuda_paths", "unfused_flex")
@every_case(("padding", "packed"), [("left", False), ("holes", False), ("right", True)])
def test_infinite_values_in_padding_change_no_output_of_one_call(padding: str, packed: bool) -> None:
    module, tensors, arguments = calls("longformer", padding, False, "positions", packed, heads=2)
    real = real_tokens(padding)
    assert real is not None
    tensors = [x.detach() for x in tensors]
    filled = [x.masked_fill(~real[:, None, :, None], float("nan")) for x in tensors]
    out, expected = (attend(*x, module, **arguments) for x in (filled, tensors))
    assert torch.equal(out[real[:, None].expand(out.shape[:3])], expected[real[:, None].expand(out.shape[:3])])
