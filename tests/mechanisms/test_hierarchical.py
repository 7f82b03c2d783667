"""Hierarchical attention: the partition by distance, pools by hand, every pair once, padding in no pool, N log N pairs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import LongAttentionConfig, attend, build_mechanism, reference_attend
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.hierarchical import Pyramid
from tests.cells import every_cell


def inputs(length: int, batch: int = 2) -> list[Tensor]:
    return [torch.randn(batch, heads, length, 16) for heads in (4, 2, 2)]


def levels(length: int, block: int, limit: int | None = None) -> Tensor:
    places = torch.arange(length)
    return Pyramid.over(length, block, limit).level_of(places[:, None], places[None])


def test_the_level_of_a_pair() -> None:
    found = levels(64, 4)
    assert found[0].tolist() == [0] * 8 + [1] * 8 + [2] * 16 + [3] * 32
    assert found[15].tolist() == [1] * 8 + [0] * 12 + [1] * 4 + [2] * 8 + [3] * 32
    assert torch.equal(found, found.T)
    assert levels(64, 4, 2)[0].tolist() == [0] * 8 + [1] * 56, "the last level takes all the rest"
    assert levels(64, 4, 1).max() == 0


def test_by_hand() -> None:
    """Sixteen tokens in blocks of two: token 0 meets 0-3 alone, 4-7 in pairs, 8-15 in fours."""
    k, v = torch.randn(1, 1, 16, 3), torch.randn(1, 1, 16, 3)
    q = torch.randn(1, 1, 1, 3).expand(1, 1, 16, 3)
    pools = [[0], [1], [2], [3], [4, 5], [6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    scores = torch.stack([(q[0, 0, 0] @ k[0, 0, pool].mean(0)).exp() * len(pool) for pool in pools])
    expected = sum(score * v[0, 0, pool].mean(0) for score, pool in zip(scores, pools, strict=True)) / scores.sum()
    out = attend(q, k, v, "hierarchical", block_size=2, scaling=1.0)
    torch.testing.assert_close(out[0, 0, 0], expected, atol=1e-5, rtol=0)


@pytest.mark.thorough
@every_cell("causal", [False, True])
@every_cell(("block", "limit"), [(8, None), (8, 2), (8, 3), (70, None), (130, None)])
@every_cell("length", [301, 512])
def test_the_parts_list_every_pair_once(length: int, block: int, limit: int | None, causal: bool) -> None:
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
def test_options_and_padding_against_the_definition(options: dict[str, Any], causal: bool) -> None:
    q, k, v = inputs(517)
    mask = torch.ones(2, 517, dtype=torch.bool)
    mask[0, :77] = False
    mask[1, 400:] = False
    mask[1, 100:121] = False
    arguments = {"causal": causal, "padding_mask": mask, "block_size": 8, **options}
    out, expected = attend(q, k, v, "hierarchical", **arguments), reference_attend(q, k, v, "hierarchical", **arguments)
    real = mask[:, None, :, None]
    torch.testing.assert_close(out * real, (expected * real).float(), atol=1e-5, rtol=0)


def test_padding_is_in_no_pool() -> None:
    q, k, v = inputs(300, batch=1)
    longer = [torch.nn.functional.pad(x, (0, 0, 13, 50), value=1e4) for x in (q, k, v)]
    mask = torch.zeros(1, 363, dtype=torch.bool)
    mask[:, 13:313] = True
    out = attend(*longer, "hierarchical", block_size=8, padding_mask=mask)
    torch.testing.assert_close(out[:, :, 13:313], attend(q, k, v, "hierarchical", block_size=8), atol=1e-5, rtol=0)


def test_equal_keys_weigh_as_in_full_attention() -> None:
    """Where the keys of a pool are equal, nothing is lost: pools count as often as they have tokens."""
    q, v = torch.randn(1, 2, 512, 8), torch.randn(1, 2, 512, 8)
    k = torch.randn(1, 2, 1, 8).expand(1, 2, 512, 8)
    torch.testing.assert_close(attend(q, k, v, "hierarchical", block_size=4), attend(q, k, v, "full"), atol=1e-5, rtol=0)


def test_smooth_keys_come_near_full_attention() -> None:
    time = torch.linspace(0, 6, 1024)[None, None, :, None]
    q, k = (torch.sin(time * torch.randn(1, 2, 1, 16) + torch.randn(1, 2, 1, 16)) for _ in range(2))
    v = torch.randn(1, 2, 1024, 16)
    exact = attend(q, k, v, "full")
    error = {b: float((attend(q, k, v, "hierarchical", block_size=b) - exact).norm() / exact.norm()) for b in (4, 16, 64)}
    assert error[64] < error[16] < error[4] < 0.3, error


def test_pairs_grow_as_n_log_n() -> None:
    module = build_mechanism("hierarchical", num_heads=1, head_dim=8, block_size=64)
    per_token = [module.pairs(n) / n for n in (4096, 8192, 16384, 32768)]
    steps = [b - a for a, b in itertools.pairwise(per_token)]
    assert all(90 < step < 100 for step in steps), "one and a half blocks more for each doubling"


@every_cell(
    ("options", "says"),
    [
        ({"block_size": 0}, "even and at least 2"),
        ({"block_size": 7}, "even and at least 2"),
        ({"levels": 0}, "at least 1"),
        ({"pooling": "men"}, "Did you mean 'mean'"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        LongAttentionConfig("hierarchical", **options)
