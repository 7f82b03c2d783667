"""Top-k attention: ties are settled, score terms count in the choice, and memory is N·k."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def line(*values: float) -> Tensor:
    """Keys or queries of one number each: a score is their product."""
    return torch.tensor(values, dtype=torch.float32).view(1, 1, -1, 1)


def test_top_k_keeps_the_earlier_key_of_equal_scores() -> None:
    q, k, v = line(*[1.0] * 6), line(0, 1, 1, 0, 1, 1), line(*range(6))
    for module in (attend, reference_attend):
        assert module(q, k, v, "top_k", num_keys=1).flatten().tolist() == [1.0] * 6
        assert module(q, k, v, "top_k", num_keys=3).flatten().tolist() == pytest.approx([7 / 3] * 6)


def test_a_score_term_takes_part_in_the_choice_of_top_k() -> None:
    q, k, v = (torch.randn(1, 2, 200, 8) for _ in range(3))

    def near(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score - 100.0 * (i - j).abs()

    out = attend(q, k, v, "top_k", num_keys=3, score_mod=near)
    band = attend(q, k, v, "window", window=2, score_mod=near)
    torch.testing.assert_close(out[:, :, 1:-1], band[:, :, 1:-1], atol=1e-5, rtol=0)
    module = build_mechanism("top_k", num_heads=2, head_dim=8, num_keys=3)
    compiled = torch.compile(lambda *x: attend(*x, mechanism=module, score_mod=near), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), out, atol=1e-6, rtol=0)


def test_top_k_saves_n_times_k_numbers_for_the_backward_pass() -> None:
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
