"""Rows of a cache, wherever it lies in memory, and the last keys of a bucket against all pairs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_longattn.engines.picked import pick, picked_attention
from hf_longattn.engines.recent import met_before, recent_places
from hf_longattn.mechanisms.bucketed import recent_in_bucket


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def caches() -> dict[str, Tensor]:
    """The same shape in several layouts."""
    return {
        "contiguous": torch.randn(2, 3, 20, 5),
        "in a larger buffer": torch.randn(2, 3, 32, 5)[:, :, :20],
        "tokens before heads": torch.randn(2, 20, 3, 5).transpose(1, 2),
        "every second number": torch.randn(2, 3, 20, 10)[..., ::2],
        "odd stride": torch.randn(2, 3, 20, 7)[..., :5],
        "one item for all": torch.randn(1, 3, 20, 5).expand(2, -1, -1, -1),
    }


@pytest.mark.parametrize("layout", caches())
@pytest.mark.parametrize("heads", [3, 6])
def test_rows_of_any_layout(layout: str, heads: int) -> None:
    x = caches()[layout]
    index = torch.randint(20, (2, heads, 4, 7))
    whole = x.repeat_interleave(heads // 3, 1)[:, :, None].expand(-1, -1, 4, -1, -1)
    assert torch.equal(pick(x, index), whole.gather(3, index[..., None].expand(-1, -1, -1, -1, 5)))


def test_a_query_that_sees_nothing_is_zero() -> None:
    q, keys, values = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 5, 4), torch.randn(1, 2, 3, 5, 4)
    seen = torch.rand(1, 2, 3, 5) < 0.5
    seen[:, :, 1] = False
    out = picked_attention(q, keys, values, seen, scaling=0.7)
    scores = (keys @ q[..., None])[..., 0] * 0.7
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num()
    torch.testing.assert_close(out, (weights[..., None, :] @ values)[..., 0, :])
    assert (out[:, :, 1] == 0).all()


@pytest.mark.parametrize("size", [1, 4, 40])
def test_the_last_of_a_bucket_are_those_of_all_pairs(size: int) -> None:
    keys, queries = torch.randint(4, (2, 3, 2, 40)), torch.randint(5, (2, 3, 2, 6))
    real = torch.rand(2, 40) < 0.8
    hidden = keys.masked_fill(~real[:, None, None], -1)
    positions = torch.arange(34, 40).expand(2, -1)
    found = recent_places(hidden, queries, positions, size)
    expected = recent_in_bucket(queries, keys, real, size)
    marks = torch.zeros(*found.shape[:-1], 41).scatter(-1, found.masked_fill(found < 0, 40), 1.0)[..., :40] > 0
    assert torch.equal(marks, expected)
    both = expected[:, :, 0] & expected[:, :, 1]
    twice = met_before(found, hidden, queries)
    assert not twice[:, :, 0].any()
    again = found[:, :, 1].masked_fill(~twice[:, :, 1], 40)
    again = again.masked_fill(again < 0, 40)
    assert torch.equal(torch.zeros(*again.shape[:-1], 41).scatter(-1, again, 1.0)[..., :40] > 0, both)
