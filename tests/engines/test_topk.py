"""The k best by a stable rule, with and without ties."""

import pytest
import torch

from hf_longattn.engines.topk import prefiltered_topk, search_keys, topk, topk_keys


@pytest.mark.parametrize("k", [1, 3, 10, 40, 64])
@pytest.mark.parametrize("levels", [2, 5, 10**6], ids=["mostly ties", "some ties", "hardly any"])
def test_it_is_the_head_of_a_stable_sort(k: int, levels: int) -> None:
    torch.manual_seed(0)
    scores = torch.randint(levels, (5, 7, 40)).double()
    assert torch.equal(topk(scores, k), scores.argsort(dim=-1, descending=True, stable=True)[..., :k])


def test_what_is_minus_infinity_is_never_chosen() -> None:
    scores = torch.tensor([[1.0, float("-inf"), 1.0, 2.0, 1.0], [float("-inf")] * 5])
    assert topk(scores, 2).tolist() == [[3, 0], [-1, -1]]
    assert topk(scores, 4).tolist() == [[3, 0, 2, 4], [-1] * 4]
    assert topk(scores, 5).tolist() == [[3, 0, 2, 4, -1], [-1] * 5]


@pytest.mark.parametrize("causal", [False, True])
def test_steps_of_any_size_find_the_same_keys(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, 30, 4), torch.randn(2, 3, 50, 4)
    mask = torch.rand(2, 50) < 0.8
    whole = topk_keys(q, k, mask, 6, causal, 0.5)
    assert whole.shape == (2, 3, 30, 6)
    for cells in (1, 120, 50 * 40):
        monkeypatch.setattr("hf_longattn.engines.topk.SCORE_CELLS", cells)
        assert torch.equal(search_keys(q, k, mask, 6, causal, 0.5, None).sort(-1).values, whole)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("keys", ["random", "equal pairs", "nearly equal", "one long", "all equal"])
def test_float32_finds_what_float64_finds(keys: str, causal: bool) -> None:
    """On rows that are long enough for the comparison of blocks, whatever stands in the way of a clear choice."""
    torch.manual_seed(0)
    # Eighths, so that sums in float64 are exact in any order and equal keys have equal scores.
    q, k = (torch.randn(2, heads, length, 16).mul(8).round().div(8) for heads, length in ((4, 30), (2, 1300)))
    if keys == "equal pairs":
        k[:, :, 650:] = k[:, :, :650]
    elif keys == "nearly equal":
        k[:, :, 650:] = k[:, :, :650] * (1 + 1e-7)
    elif keys == "one long":
        k[:, :, 7] *= 1e4
    elif keys == "all equal":
        k[:] = k[:, :, :1]
    mask = torch.rand(2, 1300) < 0.8
    found = topk_keys(q, k, mask, 6, causal, 0.5)
    expected = search_keys(q, k.repeat_interleave(2, 1), mask, 6, causal, 0.5, None).sort(-1).values
    assert torch.equal(found, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(topk_keys(q, k, mask, 6, causal, 0.5), expected)


@pytest.mark.parametrize("length", [5, 1024, 3001, 20000])
def test_rows_narrowed_by_blocks(length: int) -> None:
    torch.manual_seed(0)
    scores = torch.randn(7, length)
    scores[0, 3:] = float("-inf")
    scores[1, length // 2] = scores[1].max() + 1
    index, doubtful = prefiltered_topk(scores, 5, torch.full((7, 1), 1e-7))
    expected = topk(scores.double(), 5).sort(-1).values
    assert torch.equal(index, expected)
    assert not doubtful.any()
    scores[2] = 1.0
    assert prefiltered_topk(scores, 4, torch.full((7, 1), 1e-7))[1].tolist() == [False, False, True, False, False, False, False]
    assert prefiltered_topk(scores, 4, torch.full((7, 1), 1e3))[1].tolist() == [False, *[True] * 6]
