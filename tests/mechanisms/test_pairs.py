"""The cost that a plan states is the number of pairs the definition makes visible."""

from __future__ import annotations

import pytest
import torch

from hf_longattn import build_mechanism


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 2, 7, 20])
@pytest.mark.parametrize("options", [{}, {"window": 1}, {"window": 5}, {"window": 100}], ids=str)
def test_pairs_counts_what_is_visible(options: dict, length: int, causal: bool) -> None:
    mechanism = build_mechanism("window" if options else "full", num_heads=2, head_dim=4, **options)
    seen = mechanism.visible(length, length, 1, torch.device("cpu"), causal=causal, padding_mask=None, global_mask=None)
    assert mechanism.pairs(length, causal) == seen.expand(1, 1, length, length).sum()


@pytest.mark.parametrize("causal", [False, True])
def test_global_tokens_are_counted_from_above_and_never_beyond_full_attention(causal: bool) -> None:
    mechanism = build_mechanism("longformer", num_heads=2, head_dim=4, window=4, global_tokens=(0, 30))
    seen = mechanism.visible(64, 64, 1, torch.device("cpu"), causal=causal, padding_mask=None, global_mask=None)
    exact = int(seen.expand(1, 1, 64, 64).sum())
    assert exact <= mechanism.pairs(64, causal) <= exact + 2 * 2 * 5 + 64
    assert mechanism.pairs(2, causal) == (3 if causal else 4)
