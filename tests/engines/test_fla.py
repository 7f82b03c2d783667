"""What is asked of flash-linear-attention's kernels, by functions with their parameters that compute what they say, in the same precision.

``tests/reference/test_fla.py`` compares these with the package itself.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines.call import AttentionCall
from hf_longattn.engines.cuda import fla as kernels
from hf_longattn.engines.dispatch import observe
from tests.cases import every_case

LENGTH = 300
LENGTHS = [[70, 1, 229], [200, 100]]


def sequences(x: Tensor, cu_seqlens: Tensor | None) -> Iterator[tuple[int, slice, int]]:
    """Row, tokens and number of every sequence."""
    if cu_seqlens is None:
        yield from ((row, slice(None), row) for row in range(len(x)))
        return
    assert len(x) == 1
    assert cu_seqlens[0] == 0
    assert cu_seqlens[-1] == x.shape[1]
    yield from ((0, slice(int(first), int(last)), n) for n, (first, last) in enumerate(itertools.pairwise(cu_seqlens)))


def chunk_simple_gla(
    q: Tensor, k: Tensor, v: Tensor, g: None = None, g_gamma: None = None, scale: float | None = None, initial_state: Tensor | None = None,
    output_final_state: bool = False, state_v_first: bool = False, cu_seqlens: Tensor | None = None, cu_seqlens_cpu: None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """(B, T, H, ·): linear attention without normalisation; products of TF32 for fp32 inputs."""
    assert q.shape[2] == k.shape[2] == v.shape[2]
    assert {q.dtype, k.dtype, v.dtype} in ({torch.float32}, {torch.bfloat16})
    assert all(x.is_contiguous() for x in (q, k, v))
    assert q.shape[3] % 2 == v.shape[3] % 16 == 0
    out, states = torch.zeros_like(v), []
    rounded = [x if q.dtype == torch.bfloat16 else tf32(x) for x in (q, k, v)]
    for row, tokens, number in sequences(q, cu_seqlens):
        a, b, c = (x[row, tokens].transpose(0, 1).double() for x in rounded)
        state = None if initial_state is None else initial_state[number].double()
        summed = (a @ b.mT).tril() @ c
        out[row, tokens] = (scale * (summed if state is None else summed + a @ state)).transpose(0, 1).to(out.dtype)
        states.append(b.mT @ c + (0 if state is None else state))
    return out, torch.stack(states).float() if output_final_state else None


def tf32(x: Tensor) -> Tensor:
    """Rounded to 10 bits, with the gradient of x."""
    bits = x.detach().contiguous().view(torch.int32)
    return x + (((bits + 0x1000) & ~0x1FFF).view(torch.float32) - x.detach())


@pytest.fixture
def fla(monkeypatch: pytest.MonkeyPatch, cuda_paths: None) -> None:
    """The package in place, on CUDA."""
    monkeypatch.setattr(kernels, "installed", lambda: True)
    module = ModuleType("simple_gla")
    vars(module)["chunk_simple_gla"] = chunk_simple_gla
    monkeypatch.setitem(sys.modules, "fla.ops.simple_gla", module)


@pytest.mark.usefixtures("fla")
@every_case("packed", [False, True])
@every_case(
    ("name", "dtype", "error"),
    [
        ("linear", torch.float32, 2e-3), ("linear", torch.bfloat16, 2e-2), ("performer", torch.float32, 2e-3),
        ("performer", torch.bfloat16, 2e-2), ("taylor", torch.bfloat16, 2e-2),
    ],
)  # fmt: skip
def test_causal_linear_attention_by_the_kernels_of_fla_equals_definition(name: str, dtype: torch.dtype, error: float, packed: bool) -> None:
    """Within the error that is said, of the largest value."""
    torch.manual_seed(0)
    module = build_mechanism(name, num_heads=4, head_dim=16, hidden_size=64).eval()
    tensors = [torch.randn(2, heads, LENGTH, 16).to(dtype).requires_grad_() for heads in (4, 2, 2)]
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [LENGTH - 20]])
    arguments: dict[str, Any] = {"causal": True, "padding_mask": mask}
    if packed:
        documents = [torch.repeat_interleave(torch.arange(len(one)), torch.tensor(one)) for one in LENGTHS]
        arguments["documents"] = torch.stack(documents)
    if module.capabilities.takes_hidden_states:
        arguments["hidden_states"] = torch.randn(2, LENGTH, 64).to(dtype)
    paths: list[str] = []
    with observe(lambda _, choice: paths.append(choice.path)):
        out = attend(*tensors, module, **arguments)
    several = packed and getattr(module, "logarithms", False)  # the features of each document have a scale of their own
    assert len([path for path in paths if path == "fla"]) == (sum(length > 1 for row in LENGTHS for length in row) if several else 1)
    rows = mask[:, None, :, None]
    expected = reference_attend(*tensors, module, **arguments)
    largest = float(tensors[2].detach().abs().max())
    torch.testing.assert_close(out.double() * rows, expected * rows, atol=error * largest, rtol=0)
    upstream = torch.randn_like(expected) * rows
    for found, wanted in zip(
        torch.autograd.grad(out, tensors, upstream.to(dtype)), torch.autograd.grad(expected, tensors, upstream), strict=True
    ):
        torch.testing.assert_close(found.double(), wanted.double(), atol=5 * error * float(wanted.abs().max()), rtol=0)


@pytest.mark.usefixtures("fla")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_goes_into_the_kernels_of_fla_and_comes_out(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = build_mechanism("linear", num_heads=4, head_dim=16)
    q, k, v = (torch.randn(2, heads, LENGTH, 16).to(dtype) for heads in (4, 2, 2))
    call = AttentionCall(causal=True)
    whole, end = module.advance(q, k, v, None, call)
    first, state = module.advance(q[:, :, :100], k[:, :, :100], v[:, :, :100], None, call)
    second, after = module.advance(q[:, :, 100:], k[:, :, 100:], v[:, :, 100:], state, call)
    torch.testing.assert_close(torch.cat([first, second], 2), whole, atol=2e-2, rtol=2e-2)
    for name, x in end.items():
        torch.testing.assert_close(after[name], x, atol=1e-3, rtol=1e-3)
