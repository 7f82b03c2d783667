"""Top-k attention: the kept keys are really the best, ties are settled, and memory is N·k."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.errors import OptionError


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def line(*values: float) -> Tensor:
    """Keys or queries of one number each: a score is their product."""
    return torch.tensor(values, dtype=torch.float32).view(1, 1, -1, 1)


def test_a_hand_made_example() -> None:
    k, v = line(1, 3, 2, -5), line(10, 20, 30, 40)
    out = attend(line(1, -1, 0, 2), k, v, "top_k", num_keys=2, scaling=1.0).flatten()
    high, low = torch.tensor([3.0, 2.0]).softmax(0), torch.tensor([5.0, -1.0]).softmax(0)
    twice = torch.tensor([6.0, 4.0]).softmax(0)
    expected = [high @ torch.tensor([20.0, 30]), low @ torch.tensor([40.0, 10]), 15.0, twice @ torch.tensor([20.0, 30])]
    torch.testing.assert_close(out, torch.tensor(expected))


def test_of_equal_scores_the_earlier_key_is_kept() -> None:
    q, k, v = line(*[1.0] * 6), line(0, 1, 1, 0, 1, 1), line(*range(6))
    for module in (attend, reference_attend):
        assert module(q, k, v, "top_k", num_keys=1).flatten().tolist() == [1.0] * 6
        assert module(q, k, v, "top_k", num_keys=3).flatten().tolist() == pytest.approx([7 / 3] * 6)


def test_the_kept_keys_score_above_all_others() -> None:
    q, k = torch.randn(2, 4, 100, 8), torch.randn(2, 4, 100, 8)
    module = build_mechanism("top_k", num_heads=4, head_dim=8, num_keys=7)
    kept = module.weights(q, k, causal=True) > 0
    scores = (q @ k.transpose(-1, -2)).masked_fill(torch.ones(100, 100).triu(1).bool(), float("-inf"))
    assert (kept.sum(-1) == torch.arange(1, 101).clamp(max=7)).all()
    lowest = scores.masked_fill(~kept, float("inf")).amin(-1)
    assert (lowest > scores.masked_fill(kept, float("-inf")).amax(-1)).all()


def test_a_score_term_takes_part_in_the_choice() -> None:
    q, k, v = (torch.randn(1, 2, 200, 8) for _ in range(3))

    def near(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score - 100.0 * (i - j).abs()

    out = attend(q, k, v, "top_k", num_keys=3, score_mod=near)
    band = attend(q, k, v, "window", window=2, score_mod=near)
    torch.testing.assert_close(out[:, :, 1:-1], band[:, :, 1:-1], atol=1e-5, rtol=0)
    module = build_mechanism("top_k", num_heads=2, head_dim=8, num_keys=3)
    compiled = torch.compile(lambda *x: attend(*x, mechanism=module, score_mod=near), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), out, atol=1e-6, rtol=0)


@pytest.mark.parametrize("left", [0, 9])
def test_token_by_token_equals_the_whole(left: int) -> None:
    q, k, v = (torch.randn(2, 4, 80, 8) for _ in range(3))
    mask = torch.ones(2, 80, dtype=torch.bool)
    mask[0, :left] = False
    whole = attend(q, k, v, "top_k", num_keys=5, causal=True, padding_mask=mask)
    for n in (10, 40, 79):
        step = attend(
            q[:, :, n : n + 1], k[:, :, : n + 1], v[:, :, : n + 1], "top_k", num_keys=5, causal=True, padding_mask=mask[:, : n + 1]
        )
        torch.testing.assert_close(step, whole[:, :, n : n + 1], atol=1e-5, rtol=0)


def test_what_is_kept_for_the_backward_pass_is_n_times_k() -> None:
    kept = {}

    def note(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.numel()
        return x

    q, k, v = (torch.randn(1, 2, 1500, 8, requires_grad=True) for _ in range(3))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        out = attend(q, k, v, "top_k", num_keys=6)
    pairs = 2 * 1500 * 6
    assert max(kept.values()) <= 2 * 1500 * 8
    assert sum(kept.values()) <= 6 * pairs + 6 * q.numel()
    out.sum().backward()


@pytest.mark.parametrize("value", [0, -3])
def test_impossible_options_are_refused(value: int) -> None:
    with pytest.raises(OptionError, match=r"'num_keys' of mechanism 'top_k' is .* at least 1"):
        build_mechanism("top_k", num_heads=2, head_dim=4, num_keys=value)
