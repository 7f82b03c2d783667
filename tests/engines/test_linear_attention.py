"""The linear engine and flash-linear-attention's kernel equal the quadratic form: values, gradients, states,
memory."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines import linear_attention as engine
from hf_longattn.engines.call import ANY_CALL, AttentionCall, DispatchContext
from hf_longattn.engines.cuda import fla
from hf_longattn.engines.dispatch import first_path, observe
from hf_longattn.engines.linear_attention import absorb, empty_state, linear_attention, masked, read
from tests.cases import every_case

# ---- The engine.


def features(
    q_len: int, kv_len: int, heads: int = 4, kv_heads: int = 2, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, heads, q_len, 6), (2, kv_heads, kv_len, 6), (2, kv_heads, kv_len, 5)
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return q.exp(), k.exp(), v


def quadratic(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None, normalise: bool) -> Tensor:
    group = q.shape[1] // k.shape[1]
    weights = q @ k.repeat_interleave(group, 1).mT
    if causal:
        weights = weights.tril(k.shape[2] - q.shape[2])
    if mask is not None:
        weights = weights * mask[:, None, None]
    out = weights @ v.repeat_interleave(group, 1)
    total = weights.sum(-1, keepdim=True)
    return out / torch.where(total == 0, 1.0, total) if normalise else out


@every_case("causal", (False, True), pairs=True)
@every_case("normalise", (False, True))
@every_case("kv_heads", (1, 2, 4))
@every_case(("q_len", "kv_len", "chunk"), [(1, 1, 4), (7, 7, 4), (16, 16, 4), (3, 11, 4), (9, 9, 64)])
def test_linear_attention_equals_its_quadratic_form_with_its_gradients(
    causal: bool, normalise: bool, kv_heads: int, q_len: int, kv_len: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "CHUNK", chunk)
    leaves = [x.requires_grad_() for x in features(q_len, kv_len, kv_heads=kv_heads)]
    mask = torch.ones(2, kv_len, dtype=torch.bool)
    mask[0, : kv_len // 3] = False
    mask[1, kv_len // 2 : kv_len // 2 + 1] = False
    phi_q, phi_k, v = leaves[0], masked(leaves[1], mask), leaves[2]
    if causal:
        out, _ = linear_attention(phi_q, phi_k, v, normalise=normalise)
    else:
        out = read(phi_q, absorb(empty_state(phi_k, v), phi_k, v), normalise)
    expected = quadratic(*leaves, causal, mask, normalise)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    for found, wanted in zip(
        torch.autograd.grad(out, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("normalise", [False, True])
def test_states_of_linear_attention_pass_gradcheck_twice(normalise: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CHUNK", 2)
    q, k, v = (x[:1, :1, :5, :3].clone().requires_grad_() for x in features(7, 7))
    kv, z = (
        torch.rand(1, 1, 3, 3, dtype=torch.float64, requires_grad=True),
        torch.rand(1, 1, 3, dtype=torch.float64, requires_grad=True),
    )

    def run(*x: Tensor) -> tuple[Tensor, ...]:
        out, state = linear_attention(*x[:3], initial_state={"kv": x[3], "z": x[4]}, normalise=normalise)
        return out, state["kv"], state["z"]

    assert torch.autograd.gradcheck(run, (q, k, v, kv, z))
    assert torch.autograd.gradgradcheck(run, (q, k, v, kv, z))


def test_linear_attention_in_pieces_with_a_state_equals_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CHUNK", 8)
    q, k, v = features(40, 40)
    whole, end = linear_attention(q, k, v)
    state, outs = None, []
    for begin, stop in ((0, 13), (13, 14), (14, 40)):
        out, state = linear_attention(
            q[:, :, begin:stop], k[:, :, begin:stop], v[:, :, begin:stop], initial_state=state
        )
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 2), whole)
    for name, tensor in end.items():
        torch.testing.assert_close(state[name], tensor)


def test_sums_of_linear_attention_are_in_fp32_under_autocast_and_bf16() -> None:
    q, k, v = features(512, 512, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out, state = linear_attention(q, k, v)
    assert {out.dtype, *(x.dtype for x in state.values())} == {torch.float32}
    torch.testing.assert_close(out, quadratic(q.float(), k.float(), v.float(), True, None, True), atol=1e-5, rtol=1e-5)


def test_linear_attention_saves_memory_linear_in_the_length_for_gradients() -> None:
    def kept(length: int) -> int:
        leaves = [x.requires_grad_() for x in features(length, length)]
        storages: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: storages.setdefault(x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()) and x,
            lambda x: x,
        ):
            linear_attention(*leaves)
        return sum(storages.values())

    assert kept(4096) < 2.2 * kept(2048)


def test_the_kernels_of_fla_are_chosen_only_where_they_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fla.installed() == all(importlib.util.find_spec(name) is not None for name in ("fla", "triton"))
    context = DispatchContext("cpu", 8, 8, ANY_CALL, dtype=torch.float32, features=16)
    assert (
        first_path("linear", context)[0]
        == first_path("linear", dataclasses.replace(context, device="cuda", features=300))[0]
        == "plain"
    )
    monkeypatch.setattr(fla, "installed", lambda: True)
    assert first_path("linear", dataclasses.replace(context, device="cuda"))[0] == "fla"


# ---- flash-linear-attention, whose kernels are functions that compute what they say, in the same precision.


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
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: None = None,
    g_gamma: None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: None = None,
) -> tuple[Tensor, Tensor | None]:
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
def fla_kernels(monkeypatch: pytest.MonkeyPatch, cuda_paths: None) -> None:
    """The package in place, on CUDA."""
    monkeypatch.setattr(fla, "installed", lambda: True)
    module = ModuleType("simple_gla")
    vars(module)["chunk_simple_gla"] = chunk_simple_gla
    monkeypatch.setitem(sys.modules, "fla.ops.simple_gla", module)


@pytest.mark.usefixtures("fla_kernels")
@every_case("packed", [False, True])
@every_case(
    ("name", "dtype", "error"),
    [
        ("linear", torch.float32, 2e-3),
        ("linear", torch.bfloat16, 2e-2),
        ("performer", torch.float32, 2e-3),
        ("performer", torch.bfloat16, 2e-2),
        ("taylor", torch.bfloat16, 2e-2),
    ],
)
def test_causal_linear_attention_by_the_kernels_of_fla_equals_definition(
    name: str, dtype: torch.dtype, error: float, packed: bool
) -> None:
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
    # the features of each document have a scale of their own
    several = packed and getattr(module, "logarithms", False)
    assert len([path for path in paths if path == "fla"]) == (
        sum(length > 1 for row in LENGTHS for length in row) if several else 1
    )
    rows = mask[:, None, :, None]
    expected = reference_attend(*tensors, module, **arguments)
    largest = float(tensors[2].detach().abs().max())
    torch.testing.assert_close(out.double() * rows, expected * rows, atol=error * largest, rtol=0)
    upstream = torch.randn_like(expected) * rows
    for found, wanted in zip(
        torch.autograd.grad(out, tensors, upstream.to(dtype)),
        torch.autograd.grad(expected, tensors, upstream),
        strict=True,
    ):
        torch.testing.assert_close(found.double(), wanted.double(), atol=5 * error * float(wanted.abs().max()), rtol=0)


@pytest.mark.usefixtures("fla_kernels")
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
