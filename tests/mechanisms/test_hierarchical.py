"""Hierarchical attention: the partition by distance, every pair once, padding, N log N pairs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.mechanisms.hierarchical import Pyramid
from tests.cells import every_cell


def inputs(length: int, batch: int = 2) -> list[Tensor]:
    return [torch.randn(batch, heads, length, 16) for heads in (4, 2, 2)]


def levels(length: int, block: int, limit: int | None = None) -> Tensor:
    places = torch.arange(length)
    return Pyramid.over(length, block, limit).level_of(places[:, None], places[None])


def test_the_level_of_a_pair_in_hierarchical_grows_with_its_distance() -> None:
    found = levels(64, 4)
    assert found[0].tolist() == [0] * 8 + [1] * 8 + [2] * 16 + [3] * 32
    assert found[15].tolist() == [1] * 8 + [0] * 12 + [1] * 4 + [2] * 8 + [3] * 32
    assert torch.equal(found, found.T)
    assert levels(64, 4, 2)[0].tolist() == [0] * 8 + [1] * 56, "the last level takes all the rest"
    assert levels(64, 4, 1).max() == 0


@pytest.mark.thorough
@every_cell("causal", [False, True])
@every_cell(("block", "limit"), [(8, None), (8, 2), (8, 3), (70, None), (130, None)])
@every_cell("length", [301, 512])
def test_the_parts_of_hierarchical_list_every_pair_once(length: int, block: int, limit: int | None, causal: bool) -> None:
    pyramid = Pyramid.over(length, block, limit)
    counts = torch.zeros(length, length, dtype=torch.long)
    listed = 0
    for part in pyramid.parts(causal, torch.device("cpu")):
        for queries, keys in zip(part.queries[0, 0], part.keys[0, 0], strict=True):
            real = queries[queries >= 0]
            for level in range(pyramid.top + 1):
                first = pyramid.offset(level)
                pools = keys[(keys >= first) & (keys < first + pyramid.size(level))] - first
                tokens = (pools[:, None] * 2**level + torch.arange(2**level)).flatten()
                tokens = tokens[tokens < length]
                allowed = tokens <= real[:, None] if part.causal else torch.ones(len(real), len(tokens), dtype=torch.bool)
                listed += int(allowed.sum()) if level == 0 else len(real) * len(pools)
                places = real[:, None].expand(allowed.shape)[allowed], tokens.expand(allowed.shape)[allowed]
                assert (pyramid.level_of(*places) == level).all()
                counts.index_put_(places, torch.ones_like(places[0]), accumulate=True)
    expected = torch.ones(length, length).tril() if causal else torch.ones(length, length)
    assert torch.equal(counts, expected.long())
    assert pyramid.pairs(causal) == listed


@every_cell("causal", [False, True])
@every_cell("options", [{"levels": 2}, {"levels": 3}, {"pooling": "max"}], ids=str)
def test_hierarchical_options_with_padding_equal_the_definition(options: dict[str, Any], causal: bool) -> None:
    q, k, v = inputs(517)
    mask = torch.ones(2, 517, dtype=torch.bool)
    mask[0, :77] = False
    mask[1, 400:] = False
    mask[1, 100:121] = False
    arguments = {"causal": causal, "padding_mask": mask, "block_size": 8, **options}
    out, expected = attend(q, k, v, "hierarchical", **arguments), reference_attend(q, k, v, "hierarchical", **arguments)
    real = mask[:, None, :, None]
    torch.testing.assert_close(out * real, (expected * real).float(), atol=1e-5, rtol=0)


def test_pairs_of_hierarchical_grow_as_n_log_n() -> None:
    module = build_mechanism("hierarchical", num_heads=1, head_dim=8, block_size=64)
    per_token = [module.pairs(n) / n for n in (4096, 8192, 16384, 32768)]
    steps = [b - a for a, b in itertools.pairwise(per_token)]
    assert all(90 < step < 100 for step in steps), "one and a half blocks more for each doubling"
