"""Linear attention and the delta rule by our Triton kernels, without a GPU: the code around them with their definition in their place,
and they themselves by Triton's interpreter and compiler."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines import dispatch
from hf_longattn.engines.cuda import delta_kernel, linear_kernel
from hf_longattn.engines.linear import _delta_chunks, linear_attention

from .pretended_h100 import results
from .triton_kernels import COMPILED, DELTA, INTERPRETED

SHARED_MEMORY = 99 << 10
"""What a block may have on every GPU with TF32."""


class Launched:
    """A kernel in plain operations, launched as Triton's are."""

    def __init__(self, run: Callable[..., None]) -> None:
        self.run = run

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.run


def chunked(x: Tensor, group: int, chunk: int) -> Tensor:
    x = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[2] % chunk)).repeat_interleave(group, 1)
    return x.unflatten(2, (-1, chunk))


def chunk_sums(
    k: Tensor, v: Tensor, scale: Tensor, sums: Tensor, weights: Tensor, length: int, features: int, width: int, heads: int,
    k_group: int, v_group: int, *strides: int, CHUNK: int, WEIGH: bool, REVERSE: bool, EXP: bool, **_: Any,
) -> None:  # fmt: skip
    assert strides == (*k.stride()[:3], *v.stride()[:3])
    k = (k - scale[:, :, None]).exp() if EXP else k
    keys, values = chunked(k, k_group, CHUNK), chunked(v.to(k.dtype), v_group, CHUNK)
    found = keys.mT @ values
    sums[:, :, 1:] = found.flip(2) if REVERSE else found
    if WEIGH:
        weights[:, :, 1:] = keys.sum(3).flip(2) if REVERSE else keys.sum(3)


def outputs(
    q: Tensor, k: Tensor, v: Tensor, scale: Tensor, sums: Tensor, weights: Tensor, out: Tensor, out_weights: Tensor, length: int,
    features: int, width: int, count: int, heads: int, q_group: int, k_group: int, v_group: int, sum_group: int,
    *strides: int, CHUNK: int, WEIGH: bool, NORMALISE: bool, REVERSE: bool, EXP: bool, **_: Any,
) -> None:  # fmt: skip
    assert strides == (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    if EXP:
        logs = q + scale[:, :, None].repeat_interleave(k_group // q_group, 1)
        q, k = (logs - logs.amax(-1, keepdim=True)).exp(), (k - scale[:, :, None]).exp()
    rows, keys, values = chunked(q, q_group, CHUNK), chunked(k, k_group, CHUNK), chunked(v.to(q.dtype), v_group, CHUNK)
    scores = rows @ keys.mT
    scores = scores.triu() if REVERSE else scores.tril()
    before = sums[:, :, :-1].flip(2) if REVERSE else sums[:, :, :-1]
    total = scores @ values + rows @ before.repeat_interleave(sum_group, 1)
    if WEIGH:
        weight = scores.sum(-1) + (rows @ weights[:, :, :-1].repeat_interleave(sum_group, 1)[..., None]).squeeze(-1)
        total = total / weight[..., None] if NORMALISE else total
        out_weights.copy_(weight.flatten(2)[:, :, :length])
    out.copy_(total.nan_to_num().flatten(2, 3)[:, :, :length])


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels run as their definition."""
    launched = SimpleNamespace(chunk_sums=Launched(chunk_sums), outputs=Launched(outputs))
    monkeypatch.setattr(linear_kernel, "triton_kernels", lambda: launched)
    monkeypatch.setattr(linear_kernel, "_refusals", {})
    monkeypatch.setattr(dispatch, "triton_installed", lambda: True)


def arguments(heads: int, groups: int, length: int) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = (heads, length, 5), (groups, length, 5), (groups, length, 3), (groups, 5, 3), (groups, 5)
    return [torch.rand(2, *shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (4, 2)])
def test_outputs_states_and_all_gradients_are_those_of_the_definition(normalise: bool, heads: int, groups: int) -> None:
    inputs = arguments(heads, groups, 200)
    q, k, v, kv, z = inputs
    found = linear_kernel.kernel_linear_attention(q, k, v, kv, z, normalise)
    out, state = linear_attention(q, k, v, causal=True, normalise=normalise, initial_state={"kv": kv, "z": z})
    expected = out, state["kv"], state["z"]
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    upstream = [torch.rand_like(x) for x in expected]
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), atol=1e-9, rtol=1e-9
    )  # fmt: skip


@pytest.mark.usefixtures("kernels")
def test_gradients_are_those_of_differences() -> None:
    torch.autograd.gradcheck(lambda *x: linear_kernel.kernel_linear_attention(*x, True), [x[:1, :, :6] for x in arguments(2, 1, 6)])


@pytest.mark.usefixtures("kernels", "cuda_paths")
@pytest.mark.parametrize(
    ("name", "kv_heads", "padded"), [("linear", 2, True), ("taylor", 4, False), ("performer", 2, False), ("cosformer", 4, True)]
)
def test_mechanisms_take_the_kernels(name: str, kv_heads: int, padded: bool) -> None:
    torch.manual_seed(0)
    module = build_mechanism(name, num_heads=4, head_dim=16, max_length=300).eval()
    q, k, v = (torch.randn(2, heads, 300, 16, requires_grad=True) for heads in (4, kv_heads, kv_heads))
    mask = torch.arange(300) < torch.tensor([[300], [180]]) if padded else None
    paths: list[str] = []
    with dispatch.observe(lambda _, choice: paths.append(choice.path)):
        out = attend(q, k, v, module, causal=True, padding_mask=mask)
    assert "linear-triton" in paths
    expected = reference_attend(q, k, v, module, causal=True, padding_mask=mask)
    rows = 1.0 if mask is None else mask[:, None, :, None].float()
    torch.testing.assert_close(out * rows, expected.float() * rows, atol=1e-4, rtol=1e-4)
    for found, wanted in zip(*(torch.autograd.grad((x * rows).square().sum(), (q, k, v)) for x in (out, expected)), strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=2e-3)


@pytest.mark.usefixtures("kernels", "cuda_paths")
def test_a_machine_whose_results_are_wrong_gets_other_operations_and_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(*args: Any, **constants: Any) -> None:
        outputs(*args, **constants)
        args[6].mul_(1.5)

    launched = SimpleNamespace(chunk_sums=Launched(chunk_sums), outputs=Launched(wrong))
    monkeypatch.setattr(linear_kernel, "triton_kernels", lambda: launched)
    q, k, v = torch.randn(3, 1, 2, 100, 16)
    paths: list[str] = []
    with dispatch.observe(lambda _, choice: paths.append(choice.path)), caplog.at_level(logging.WARNING):
        for _ in range(2):
            out = attend(q, k, v, "linear", causal=True)
    assert paths == ["linear-chunks"] * 2
    torch.testing.assert_close(out, reference_attend(q, k, v, "linear", causal=True).float(), atol=1e-5, rtol=1e-5)
    assert len(caplog.messages) == 1
    assert "differ from the definition by 0.47" in caplog.messages[0]


@pytest.mark.usefixtures("kernels", "cuda_paths")
def test_packed_documents_are_one_call_without_the_kernels() -> None:
    q, k, v = torch.randn(3, 1, 2, 100, 16)
    module = build_mechanism("linear", num_heads=2, head_dim=16)
    refused: list[str] = []
    with dispatch.observe(lambda _, choice: refused.append(choice.path)):
        attend(q, k, v, module, causal=True, documents=(torch.arange(100) // 40)[None])
    assert "linear-triton" not in refused


@pytest.mark.usefixtures("kernels", "cuda_paths")
@pytest.mark.parametrize(("causes", "path"), [("right", "delta-triton"), ("wrong", "delta-chunks")])
def test_the_delta_rule_takes_kernels_where_they_are_right(
    causes: str, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The backward pass is that of the plain operations."""
    factor = 1.0 if causes == "right" else 1.5
    monkeypatch.setattr(delta_kernel, "_run", lambda *x: tuple(factor * y for y in _delta_chunks(*(y.float() for y in x))))
    monkeypatch.setattr(delta_kernel, "_refusals", {})
    torch.manual_seed(0)
    module = build_mechanism("delta", num_heads=4, head_dim=16, gate_input="key").eval()
    inputs = [torch.randn(2, heads, 100, 16, requires_grad=True) for heads in (4, 2, 2)]
    paths: list[str] = []
    with dispatch.observe(lambda _, choice: paths.append(choice.path)), caplog.at_level(logging.WARNING):
        out = attend(*inputs, module, causal=True)
    assert paths == [path]
    assert len(caplog.messages) == (causes == "wrong")
    expected = reference_attend(*inputs, module, causal=True).float()
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(out)
    for found, wanted in zip(*(torch.autograd.grad(x, inputs, upstream) for x in (out, expected)), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("kernels")
def test_a_chunk_is_as_long_as_costs_least() -> None:
    assert linear_kernel.chunk_length(64, 64, 1 << 14) == 256
    assert linear_kernel.chunk_length(16, 16, 1 << 14) == 128
    assert linear_kernel.chunk_length(256, 64, 100) == 128, "no longer than the text needs"


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Callable[[str], dict[str, Any]]]:
    with results("tests.engines.triton_kernels", "case", "interpreted") as result_of:
        yield result_of


@pytest.fixture(scope="module")
def compiled() -> Iterator[Callable[[str], dict[str, Any]]]:
    with results("tests.engines.triton_kernels", "case", "compiled") as result_of:
        yield result_of


@pytest.mark.slow
@pytest.mark.parametrize("case", [*INTERPRETED, *DELTA])
def test_the_kernels_compute_the_definition(case: str, interpreted: Callable[[str], dict[str, Any]]) -> None:
    """In fp32, forward and backward; gradients of values in half precision are rounded."""
    errors = interpreted(case)["errors"]
    half = "half precision" in case
    assert max(errors[:2]) < 2e-6, "outputs and states"
    assert max(errors[2:]) < (4e-3 if half else 4e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPILED)
def test_the_kernels_can_be_compiled(case: str, compiled: Callable[[str], dict[str, Any]]) -> None:
    assert compiled(case)["shared"] <= SHARED_MEMORY
    assert compiled(case)["stack"] <= 640, "hardly anything is spilled"
