"""Linear attention, the delta rule and hybrids by our Triton kernels, without a GPU: the code around them with their definition in their
place, and they themselves by Triton's interpreter and compiler."""

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
from hf_longattn.engines.common.call import AttentionCall
from hf_longattn.engines.cuda import delta_kernel, linear_kernel, terms_kernel
from hf_longattn.engines.linear import _delta_chunks, absorb, empty_state, linear_attention

from .pretended_h100 import results
from .triton_kernels import COMPILED, DELTA, HYBRID, INTERPRETED

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
    pitch: int, features: int, width: int, count: int, heads: int, q_group: int, k_group: int, v_group: int, sum_group: int,
    *strides: int, CHUNK: int, WEIGH: bool, NORMALISE: bool, ADD: bool, REVERSE: bool, EXP: bool, **_: Any,
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
        weighed = weights[:, :, :-1].flip(2) if REVERSE else weights[:, :, :-1]
        weight = scores.sum(-1) + (rows @ weighed.repeat_interleave(sum_group, 1)[..., None]).squeeze(-1)
        total = total / weight[..., None] if NORMALISE else total
        out_weights.copy_(weight.flatten(2)[:, :, :length] + (out_weights if ADD else 0))
    assert out.stride() == (out.shape[1] * pitch * width, pitch * width, width, 1)
    out.copy_(total.nan_to_num().flatten(2, 3)[:, :, :length] + (out if ADD else 0))


def softmax_terms(
    q: Tensor, k: Tensor, v: Tensor, q_labels: Tensor, k_labels: Tensor, factor: Tensor, out: Tensor, weights: Tensor, tops: Tensor,
    length: int, kv_len: int, features: int, width: int, left: int, right: int, score_scale: float, heads: int, k_group: int, v_group: int,
    *strides: int, LABELLED: bool, **_: Any,
) -> None:  # fmt: skip
    assert strides == (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    apart = torch.arange(kv_len) - (torch.arange(length) + kv_len - length)[:, None]
    seen = (apart >= -left) & (apart <= right)
    if LABELLED:
        seen = seen & (q_labels[:, None, :, None] == k_labels[:, None, None, :])
    keys, values = k.repeat_interleave(k_group, 1), v.repeat_interleave(v_group, 1)
    scores = (q @ keys.mT * score_scale).masked_fill(~seen, float("-inf"))
    tops.copy_(scores.amax(-1).nan_to_num(neginf=0.0))
    terms = factor[:, None, None] * (scores - tops[..., None]).exp()
    out.copy_(terms @ values)
    weights.copy_(terms.sum(-1))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels run as their definition."""
    launched = SimpleNamespace(chunk_sums=Launched(chunk_sums), outputs=Launched(outputs), softmax_terms=Launched(softmax_terms))
    for module in (linear_kernel, terms_kernel):
        monkeypatch.setattr(module, "triton_kernels", lambda: launched)
        monkeypatch.setattr(module, "_refusals", {})
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


HYBRIDS: list[tuple[bool, int, str, dict[str, Any]]] = [
    (True, 2, "hedgehog", {}),
    (False, 4, "hedgehog", {"padding_mask": torch.arange(150) < torch.tensor([[150], [90]])}),
    (False, 2, "linear", {"documents": (torch.arange(150) // 60).expand(2, -1)}),
    (True, 4, "taylor:feature_dim=4", {}),
]
"""Causal or not, heads of keys, features, and other arguments."""


@pytest.mark.usefixtures("kernels", "cuda_paths")
@pytest.mark.parametrize(("causal", "kv_heads", "features", "arguments"), HYBRIDS)
def test_a_hybrid_sums_near_and_far_keys_by_kernels(causal: bool, kv_heads: int, features: str, arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = build_mechanism("hybrid", num_heads=4, head_dim=16, window=12, features=features)
    inputs = [torch.randn(2, heads, 150, 16, requires_grad=True) for heads in (4, kv_heads, kv_heads)]
    paths: list[str] = []
    with dispatch.observe(lambda _, choice: paths.append(choice.path)):
        out = attend(*inputs, module, causal=causal, **arguments)
    assert paths[-2:] == ["terms-triton", "linear-triton"] if "documents" not in arguments else paths[-1] == "terms-triton"
    expected = reference_attend(*inputs, module, causal=causal, **arguments).float()
    rows = arguments["padding_mask"][:, None, :, None] if "padding_mask" in arguments else 1.0
    torch.testing.assert_close(out * rows, expected * rows, atol=1e-5, rtol=1e-5)
    sources = [*inputs, *module.parameters()]
    upstream = torch.randn_like(out) * rows
    for found, wanted in zip(*(torch.autograd.grad(x, sources, upstream) for x in (out, expected)), strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.usefixtures("kernels", "cuda_paths")
def test_a_cached_hybrid_takes_the_kernels_for_every_piece() -> None:
    """The first piece, whose cache is empty, a later one and a single token."""
    torch.manual_seed(0)
    module = build_mechanism("hybrid", num_heads=4, head_dim=16, window=12)
    q, k, v = (torch.randn(2, heads, 171, 16) for heads in (4, 2, 2))
    state, outs, paths = None, [], []
    with torch.no_grad(), dispatch.observe(lambda _, choice: paths.append(choice.path)):
        for piece in (slice(0, 100), slice(100, 170), slice(170, 171)):
            out, state = module.advance(*(x[:, :, piece] for x in (q, k, v)), state, AttentionCall(causal=True))
            outs.append(out)
    assert paths == ["terms-triton", "linear-triton"] * 2 + ["linear-chunks"]
    torch.testing.assert_close(torch.cat(outs, 2), reference_attend(q, k, v, module, causal=True).float(), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("kernels", "cuda_paths")
def test_a_hybrid_adds_to_the_sums_of_other_processes() -> None:
    """Queries of the middle of a text, with the keys near them and the sums over all others, as a process of several has them."""
    torch.manual_seed(0)
    module = build_mechanism("hybrid", num_heads=4, head_dim=16, window=12)
    q, k, v = inputs = [torch.randn(2, heads, 150, 16, requires_grad=True) for heads in (4, 2, 2)]
    call = AttentionCall()
    phi_k, ones = module.linear.keys(k, call), torch.ones(2, 4, 150, 1)
    values = torch.cat([v.repeat_interleave(2, 1), ones], -1)
    earlier, later = (
        absorb(empty_state(phi_k, values), phi_k[:, :, keys], values[:, :, keys]) for keys in (slice(0, 54), slice(106, None))
    )  # fmt: skip
    queries = torch.nn.functional.pad(q[:, :, 60:100], (0, 0, 0, 6))
    paths: list[str] = []
    with dispatch.observe(lambda _, choice: paths.append(choice.path)):
        out = module._run(queries, k[:, :, 54:106], v[:, :, 54:106], earlier, call, later)[:, :, :40]
    assert paths == ["terms-triton", "linear-triton"]
    expected = reference_attend(q, k, v, module).float()[:, :, 60:100]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(out)
    for found, wanted in zip(*(torch.autograd.grad(x, inputs, upstream) for x in (out, expected)), strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.usefixtures("kernels", "cuda_paths")
@pytest.mark.parametrize(
    ("module", "kernel", "paths"),
    [
        (terms_kernel, "softmax_terms", ["terms-plain", *["linear-triton"] * 2]),
        (linear_kernel, "outputs", ["terms-triton", *["linear-chunks"] * 3]),
    ],
)
def test_a_hybrid_whose_kernel_is_wrong_gets_other_operations_and_one_warning(
    module: Any, kernel: str, paths: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = module.triton_kernels()

    def wrong(*args: Any, **constants: Any) -> None:
        getattr(right, kernel).run(*args, **constants)
        args[6].mul_(1.5)

    monkeypatch.setattr(module, "triton_kernels", lambda: SimpleNamespace(**vars(right) | {kernel: Launched(wrong)}))
    q, k, v = torch.randn(3, 1, 2, 100, 16)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            ran: list[str] = []
            with dispatch.observe(lambda _, choice, ran=ran: ran.append(choice.path)):  # type: ignore[misc]
                out = attend(q, k, v, "hybrid", window=12)
            assert ran == paths
            torch.testing.assert_close(out, reference_attend(q, k, v, "hybrid", window=12).float(), atol=1e-5, rtol=1e-5)
    assert len(caplog.messages) == 1
    assert "differ from the definition" in caplog.messages[0]


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
@pytest.mark.parametrize("case", HYBRID)
def test_the_kernels_compute_a_hybrid(case: str, interpreted: Callable[[str], dict[str, Any]]) -> None:
    """Outputs and gradients, those of its parameters among them, with the paths that a GPU takes."""
    result = interpreted(case)
    assert "terms-triton" in result["paths"]
    assert ("linear-triton" in result["paths"]) == ("documents" not in case)
    assert max(result["errors"]) < (6e-3 if "half precision" in case else 4e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPILED)
def test_the_kernels_can_be_compiled(case: str, compiled: Callable[[str], dict[str, Any]]) -> None:
    assert compiled(case)["shared"] <= SHARED_MEMORY
    assert compiled(case)["stack"] <= 640, "hardly anything is spilled"
