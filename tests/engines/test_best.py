"""The k best by a stable rule, with and without ties."""

import pytest
import torch

from hf_longattn.engines.best import best, best_keys, search_keys


@pytest.mark.parametrize("k", [1, 3, 10, 40, 64])
@pytest.mark.parametrize("levels", [2, 5, 10**6], ids=["mostly ties", "some ties", "hardly any"])
def test_it_is_the_head_of_a_stable_sort(k: int, levels: int) -> None:
    torch.manual_seed(0)
    scores = torch.randint(levels, (5, 7, 40)).double()
    assert torch.equal(best(scores, k), scores.argsort(dim=-1, descending=True, stable=True)[..., :k])


def test_what_is_minus_infinity_is_never_chosen() -> None:
    scores = torch.tensor([[1.0, float("-inf"), 1.0, 2.0, 1.0], [float("-inf")] * 5])
    assert best(scores, 2).tolist() == [[3, 0], [-1, -1]]
    assert best(scores, 4).tolist() == [[3, 0, 2, 4], [-1] * 4]
    assert best(scores, 5).tolist() == [[3, 0, 2, 4, -1], [-1] * 5]


@pytest.mark.parametrize("causal", [False, True])
def test_steps_of_any_size_find_the_same_keys(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, 30, 4), torch.randn(2, 3, 50, 4)
    mask = torch.rand(2, 50) < 0.8
    whole = best_keys(q, k, mask, 6, causal, 0.5)
    assert whole.shape == (2, 3, 30, 6)
    for cells in (1, 120, 50 * 40):
        monkeypatch.setattr("hf_longattn.engines.best.SCORE_CELLS", cells)
        assert torch.equal(search_keys(q, k, mask, 6, causal, 0.5, None), whole)
