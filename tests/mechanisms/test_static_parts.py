"""Static patterns: the parts list every pair of the mask once and nothing else, and their number is what `pairs` states."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_longattn import build_mechanism
from hf_longattn.mechanisms.common.masked import GatheredMechanism
from tests.cases import every_case
from tests.mechanisms.listed import listed, visible

CPU = torch.device("cpu")
PATTERNS: list[tuple[str, dict[str, Any]]] = [
    ("strided", {"window": 6, "stride": 4}),
    ("strided", {"window": 1, "stride": 7}),
    ("strided", {"window": 32, "stride": 3}),
    ("strided", {"window": 6, "stride": 4, "columns": "absolute"}),
    ("strided", {"window": 40, "stride": 9, "columns": "absolute"}),
    ("strided", {"window": 16, "stride": 512, "columns": "absolute"}),  # beyond most texts
    ("fixed", {"block_size": 8, "num_summary": 1}),
    ("fixed", {"block_size": 150, "num_summary": 7}),
    ("fixed", {"block_size": 5, "num_summary": 3}),
    ("segmented", {"block_size": 8, "integration": "none"}),
    ("segmented", {"block_size": 140, "integration": "none"}),
    ("segmented", {"block_size": 8, "integration": "previous"}),
    ("segmented", {"block_size": 1, "integration": "previous"}),
    ("segmented", {"block_size": 133, "integration": "previous"}),
]
LENGTHS = (1, 2, 7, 8, 9, 31, 64, 65, 129, 300, 600)


def mask_of(mechanism: Any, length: int, causal: bool) -> torch.Tensor:
    seen = visible(mechanism, length, causal)
    return seen.expand(1, mechanism.num_heads, length, length)[0]


@every_case("causal", [False, True])
@every_case(("name", "options"), PATTERNS, ids=str)
def test_the_parts_of_static_patterns_list_the_pairs_of_the_mask_once(name: str, options: dict[str, Any], causal: bool) -> None:
    mechanism = build_mechanism(name, num_heads=1, head_dim=4, **options)
    assert isinstance(mechanism, GatheredMechanism)
    for length in LENGTHS:
        seen = mask_of(mechanism, length, causal)[0]
        if not mechanism.covers(length, causal):
            assert torch.equal(listed(mechanism.parts(length, causal, CPU), length, length), seen.long()), length
        assert mechanism.covers(length, causal) <= torch.equal(
            seen, mask_of(build_mechanism("full", num_heads=1, head_dim=4), length, causal)[0]
        )
        assert mechanism.pairs(length, causal) == seen.sum(), length


@every_case("causal", [False, True])
@every_case("length", [1, 2, 7, 20])
@every_case("options", [{}, {"window": 1}, {"window": 5}, {"window": 100}], ids=str)
def test_pairs_of_window_and_full_are_the_number_of_visible_keys(options: dict, length: int, causal: bool) -> None:
    mechanism = build_mechanism("window" if options else "full", num_heads=1, head_dim=4, **options)
    seen = visible(mechanism, length, causal)
    assert mechanism.pairs(length, causal) == seen.expand(1, 1, length, length).sum()


@pytest.mark.parametrize("causal", [False, True])
def test_pairs_of_longformer_are_a_bound_that_is_never_beyond_full_attention(causal: bool) -> None:
    mechanism = build_mechanism("longformer", num_heads=1, head_dim=4, window=4, global_tokens=(0, 30))
    seen = visible(mechanism, 64, causal)
    exact = int(seen.expand(1, 1, 64, 64).sum())
    assert exact <= mechanism.pairs(64, causal) <= exact + 2 * 2 * 5 + 64
    assert mechanism.pairs(2, causal) == (3 if causal else 4)
