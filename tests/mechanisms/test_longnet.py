"""`longnet`: which branches pair a query with a key, and how often the key counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_longattn import attend, build_mechanism
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.longnet import LongNet
from tests.cells import every_cell

OPTIONS: list[dict[str, Any]] = [
    {"segments": (8, 32)},
    {"segments": (5, 12, 70), "dilations": (1, 3, 5)},
    {"segments": (16, 300), "dilations": (2, 1)},
    {"segments": (140,)},
]


def built(heads: int = 2, **options: Any) -> LongNet:
    mechanism = build_mechanism("longnet", num_heads=heads, head_dim=4, **options)
    assert isinstance(mechanism, LongNet)
    return mechanism


def times(mechanism: LongNet, length: int, causal: bool) -> torch.Tensor:
    """How often each query counts each key, ``(H, N, N)``."""
    h, places = torch.arange(mechanism.num_heads)[:, None, None], torch.arange(length)
    counts = mechanism.times(h, places[:, None], places)
    return counts * (places <= places[:, None]) if causal else counts


def lines(counts: torch.Tensor) -> list[str]:
    return ["".join(map(str, row)).replace("0", ".") for row in counts.tolist()]


def test_branches_overlap_where_a_head_takes_the_token() -> None:
    first, second = times(built(segments=(2, 4), dilations=(1, 2)), 6, False)
    assert lines(first) == ["211...", "11....", "1.21..", "..11..", "....21", "....11"]
    assert lines(second) == ["11....", "12.1..", "..11..", ".112..", "....11", "....12"]


@every_cell("causal", [False, True])
@every_cell("options", OPTIONS, ids=str)
def test_parts_list_a_pair_once_for_each_of_its_branches(options: dict[str, Any], causal: bool) -> None:
    mechanism = built(**options)
    for length in (1, 2, 7, 31, 64, 300):
        counts = times(mechanism, length, causal)
        assert mechanism.pairs(length, causal) == min(counts.sum() // 2, times(built(segments=(length,)), length, causal)[0].sum())


@pytest.mark.parametrize("causal", [False, True])
def test_the_heads_together_reach_all_tokens(causal: bool) -> None:
    counts = times(built(heads=4, segments=(1, 16), dilations=(1, 4)), 32, causal)
    assert bool((counts.diagonal(dim1=1, dim2=2).sum(0) == 4 + 1).all())


def test_a_key_of_two_branches_has_twice_the_weight() -> None:
    q = torch.zeros(1, 1, 4, 4)
    weights = built(heads=1, segments=(2, 4)).weights(q, q)[0, 0]
    torch.testing.assert_close(weights[0], torch.tensor([2.0, 1.0, 1.0, 0.0]) / 4)


@pytest.mark.parametrize("causal", [False, True])
def test_short_text_with_undilated_branches_is_full_attention(causal: bool) -> None:
    q, k, v = torch.randn(3, 1, 2, 40, 8).unbind(0)
    undilated = {"segments": (40, 64), "dilations": (1, 1)}
    torch.testing.assert_close(attend(q, k, v, "longnet", causal=causal, **undilated), attend(q, k, v, "full", causal=causal))
    assert built(**undilated).covers(40, causal)
    assert not built(segments=(40, 64)).covers(40, causal)


@every_cell(
    ("options", "sentence"),
    [
        ({"segments": 0}, "'segments' of mechanism 'longnet' is 0"),
        ({"segments": (64, 32)}, "ascending; for example segments=2048[+]4096"),
        ({"segments": (32, 32)}, "must be ascending"),
        ({"segments": ()}, "must be ascending"),
        ({"segments": (32, 64), "dilations": (1, 2, 4)}, "must be 2 numbers of at least 1.*for example dilations=1[+]2"),
        ({"segments": (32, 64), "dilations": (2, 4)}, "one of them 1, so that every token sees itself"),
        ({"segments": (32, 64), "dilations": (1, 0)}, "at least 1"),
    ],
    ids=str,
)
def test_impossible_values_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        built(**options)
