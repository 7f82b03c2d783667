"""Top-k attention over keys and over blocks: ties, score terms, blocks of queries that choose together, memory and
pairs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.mechanisms.common.base import attention_weights
from tests.cases import every_case


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
    compiled = torch.compile(
        lambda *x: attend(*x, mechanism=module, score_mod=near), fullgraph=True, backend="aot_eager"
    )
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


def seen(length: int, causal: bool, **options: object) -> Tensor:
    """Which keys each query weighs, ``(B, H, N, N)``, and the blocks' gates."""
    q, k = torch.randn(2, 2, 2, length, 8)
    module = build_mechanism("block_top_k", num_heads=2, head_dim=8, **options)
    return attention_weights(module, q, k, causal=causal) > 0


def test_block_top_k_chooses_the_earlier_of_equal_blocks() -> None:
    q, k = torch.ones(1, 1, 64, 4), torch.ones(1, 1, 64, 4)
    v = (torch.arange(64.0) // 8).view(1, 1, 64, 1).expand(-1, -1, -1, 4)
    for module in (attend, reference_attend):
        out = module(q, k, v, "block_top_k", block_size=8, num_blocks=2)[0, 0, :, 0]
        assert out[63] == pytest.approx(3.5)
        assert out[0] == pytest.approx(0.5)
        assert out[20] == pytest.approx(1.0)


@every_case("causal", [False, True])
def test_block_top_k_pairs_are_the_seen_and_the_scored_ones(causal: bool) -> None:
    module = build_mechanism("block_top_k", num_heads=2, head_dim=8, block_size=16, num_blocks=3)
    visible = int(seen(320, block_size=16, num_blocks=3, causal=causal)[0, 0].sum())
    scored = sum(i // 16 if causal else 20 for i in range(320))
    assert module.pairs(320, causal) == visible + scored
    assert module.pairs(48, causal) == (48 * 49 // 2 if causal else 48 * 48)
