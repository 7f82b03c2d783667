"""The k best by a stable rule, with and without ties; scores, sums and spreads over listed keys against a one-hot
einsum, and their gradients; rows of a cache, wherever it lies in memory."""

from __future__ import annotations

import pytest
import torch

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines import accelerator
from hf_longattn.engines import topk as engine
from hf_longattn.engines.topk import pair_scores, pair_spread, pair_sum, search_keys, topk, topk_keys
from tests.cases import every_case
from tests.comparisons import assert_equal_with_gradients


@every_case("k", [1, 3, 10, 40, 64])
@every_case("levels", [2, 5, 10**6], ids=["mostly ties", "some ties", "hardly any"])
def test_topk_is_the_head_of_a_stable_sort(k: int, levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randint(levels, (5, 7, 40)).double()
    expected = scores.argsort(dim=-1, descending=True, stable=True)[..., :k]
    assert torch.equal(topk(scores, k), expected)
    monkeypatch.setattr(accelerator, "accelerated", lambda x: True)
    for longest in (20, 1024):
        monkeypatch.setattr(engine, "MAX_SORTED", longest)
        assert torch.equal(topk(scores, k), expected)


@pytest.mark.parametrize("accelerated", [False, True])
def test_topk_never_chooses_minus_infinity(accelerated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "accelerated", lambda x: accelerated)
    monkeypatch.setattr(engine, "MAX_SORTED", 4)
    scores = torch.tensor([[1.0, float("-inf"), 1.0, 2.0, 1.0], [float("-inf")] * 5])
    assert topk(scores, 2).tolist() == [[3, 0], [-1, -1]]
    assert topk(scores, 4).tolist() == [[3, 0, 2, 4], [-1] * 4]
    assert topk(scores, 5).tolist() == [[3, 0, 2, 4, -1], [-1] * 5]


@pytest.mark.parametrize("causal", [False, True])
def test_the_search_for_top_keys_in_steps_of_any_size_is_the_same(
    causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k = torch.randn(2, 3, 30, 4), torch.randn(2, 3, 50, 4)
    mask = torch.rand(2, 50) < 0.8
    whole = topk_keys(q, k, mask, 6, causal, 0.5)
    assert whole.shape == (2, 3, 30, 6)
    for cells in (1, 120, 50 * 40):
        monkeypatch.setattr("hf_longattn.engines.topk.SCORE_CELLS", cells)
        assert torch.equal(search_keys(q, k, mask, 6, causal, 0.5, None).sort(-1).values, whole)


@every_case("causal", [False, True])
@every_case("keys", ["random", "equal pairs", "nearly equal", "all equal"])
def test_the_top_keys_are_those_of_float64_scores(keys: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # eighths, so that sums in float64 are exact in any order and equal keys have equal scores
    q, k = (torch.randn(2, heads, length, 16).mul(8).round().div(8) for heads, length in ((4, 30), (2, 130)))
    if keys == "equal pairs":
        k[:, :, 65:] = k[:, :, :65]
    elif keys == "nearly equal":
        k[:, :, 65:] = k[:, :, :65] * (1 + 1e-7)
    elif keys == "all equal":
        k[:] = k[:, :, :1]
    mask = torch.rand(2, 130) < 0.8
    scores = q.double() @ k.double().repeat_interleave(2, 1).mT
    hidden = ~mask[:, None, None].expand(scores.shape)
    if causal:
        hidden = hidden | (torch.arange(130) > torch.arange(100, 130)[:, None])
    scores = scores.masked_fill(hidden, float("-inf"))
    values, order = scores.sort(dim=-1, descending=True, stable=True)
    expected = order.masked_fill(values == float("-inf"), -1)[..., :6].sort(-1).values
    assert torch.equal(topk_keys(q, k, mask, 6, causal, 0.5), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(topk_keys(q, k, mask, 6, causal, 0.5), expected)
    monkeypatch.setattr(accelerator, "accelerated", lambda x: True)
    for step_bytes in (accelerator.STEP_BYTES, 7000 * 16):
        monkeypatch.setattr(accelerator, "STEP_BYTES", step_bytes)
        assert torch.equal(topk_keys(q, k, mask, 6, causal, 0.5), expected), "all heads together, in steps of any size"


def tensors(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    q, k, index = torch.randn(2, 3, 7, 4), torch.randn(2, 3, 11, 4), torch.randint(11, (2, 3, 7, 5))
    return q.to(dtype), k.to(dtype), torch.rand(2, 3, 7, 5).to(dtype), index


@every_case("dtype", [torch.float32, torch.float64, torch.bfloat16])
@every_case("slice_", [1, 1 << 20])
@every_case("accelerated", [False, True])
def test_scores_sums_and_spreads_of_pairs_equal_a_one_hot_einsum(
    dtype: torch.dtype, accelerated: bool, slice_: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MAX_GATHERED_NUMBERS", slice_)
    monkeypatch.setattr(accelerator, "accelerated", lambda x: accelerated)
    monkeypatch.setattr(accelerator, "STEP_BYTES", 16 * slice_)
    q, k, w, index = tensors(dtype)
    one_hot = torch.nn.functional.one_hot(index, 11).to(torch.float64)
    a, b, c = q.double(), k.double(), w.double()
    expected = (
        torch.einsum("bhid,bhmd,bhijm->bhij", a, b, one_hot),
        torch.einsum("bhij,bhmd,bhijm->bhid", c, b, one_hot),
        torch.einsum("bhij,bhid,bhijm->bhmd", c, a, one_hot),
    )
    for got, wanted in zip(
        (pair_scores(q, k, index), pair_sum(w, k, index), pair_spread(w, q, index, 11)), expected, strict=True
    ):
        assert got.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=0)


def test_operations_on_pairs_pass_gradcheck_twice() -> None:
    q, k, w, index = tensors(torch.float64)
    q, k, w = (x[:1, :1].contiguous().requires_grad_() for x in (q, k, w))
    index = index[:1, :1]
    for call, given in (
        (lambda a, b: pair_scores(a, b, index), (q, k)),
        (lambda a, b: pair_sum(a, b, index), (w, k)),
        (lambda a, b: pair_spread(a, b, index, 11), (w, q)),
    ):
        assert torch.autograd.gradcheck(call, given, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, given, fast_mode=True)


@pytest.mark.thorough
@pytest.mark.usefixtures("cuda_paths")
@pytest.mark.parametrize("causal", [False, True])
def test_top_k_by_the_steps_of_a_gpu_equals_the_definition(causal: bool) -> None:
    module = build_mechanism("top_k", num_heads=4, head_dim=16, num_keys=20)
    tensors = [torch.randn(2, heads, 1100, 16).requires_grad_() for heads in (4, 2, 2)]
    arguments = {"causal": causal, "padding_mask": torch.arange(1100) < torch.tensor([[1100], [900]])}
    out, expected = attend(*tensors, module, **arguments), reference_attend(*tensors, module, **arguments).float()
    assert_equal_with_gradients(out, expected, tensors, arguments["padding_mask"], atol=2e-6, gradients=2e-5)
