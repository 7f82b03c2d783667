"""Hierarchical attention: the partition by distance, options with padding, N log N pairs."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from hf_longattn import build_mechanism
from tests.cases import every_case
from tests.mechanisms.definition import assert_equals_its_definition


def inputs(length: int, batch: int = 2) -> list[Tensor]:
    return [torch.randn(batch, heads, length, 16) for heads in (4, 2, 2)]


def levels(length: int, block: int, limit: int | None = None) -> Tensor:
    positions = torch.arange(length)
    module = build_mechanism("hierarchical", num_heads=1, head_dim=8, block_size=block, levels=limit)
    return module.pyramid(length).level_of(positions[:, None], positions[None])


def test_the_level_of_a_pair_in_hierarchical_grows_with_its_distance() -> None:
    found = levels(64, 4)
    assert found[0].tolist() == [0] * 8 + [1] * 8 + [2] * 16 + [3] * 32
    assert found[15].tolist() == [1] * 8 + [0] * 12 + [1] * 4 + [2] * 8 + [3] * 32
    assert torch.equal(found, found.T)
    assert levels(64, 4, 2)[0].tolist() == [0] * 8 + [1] * 56, "the last level takes all the rest"
    assert levels(64, 4, 1).max() == 0


@every_case("causal", [False, True])
@every_case("options", [{"levels": 2}, {"levels": 3}, {"pooling": "max"}], ids=str)
def test_hierarchical_options_with_padding_equal_the_definition(options: dict[str, Any], causal: bool) -> None:
    q, k, v = inputs(517)
    mask = torch.ones(2, 517, dtype=torch.bool)
    mask[0, :77] = False
    mask[1, 400:] = False
    mask[1, 100:121] = False
    module = build_mechanism("hierarchical", num_heads=4, head_dim=16, block_size=8, **options)
    assert_equals_its_definition(module, *(x.requires_grad_() for x in (q, k, v)), mask, causal=causal)


def test_pairs_of_hierarchical_grow_as_n_log_n() -> None:
    module = build_mechanism("hierarchical", num_heads=1, head_dim=8, block_size=64)
    per_token = [module.pairs(n) / n for n in (4096, 8192, 16384, 32768)]
    steps = [b - a for a, b in itertools.pairwise(per_token)]
    assert all(90 < step < 100 for step in steps), "one and a half blocks more for each doubling"
