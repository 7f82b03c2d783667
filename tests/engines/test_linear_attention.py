"""The linear engine equals the quadratic form: values, gradients, states, memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_longattn.engines import linear_attention as engine
from hf_longattn.engines.linear_attention import absorb, empty_state, linear_attention, masked, read
from tests.cases import every_case
from tests.comparisons import assert_equal_with_gradients

# ---- The engine.


def features(q_len: int, kv_len: int, kv_heads: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, q_len, 6), (2, kv_heads, kv_len, 6), (2, kv_heads, kv_len, 5)
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
    assert_equal_with_gradients(out, expected, leaves, atol=1e-7, gradients=1e-7, rtol=1e-7)


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
    torch.testing.assert_close(state, end)


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
