"""`strided`: the two forms of its columns, drawn."""

from __future__ import annotations

import pytest
import torch

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.errors import OptionError
from tests.cells import every_cell
from tests.mechanisms.listed import image, visible


def drawn(length: int, causal: bool, **options) -> list[str]:
    mechanism = build_mechanism("strided", num_heads=1, head_dim=4, **options)
    return image(visible(mechanism, length, causal)[0, 0])


def test_relative_columns_go_with_the_query() -> None:
    assert drawn(9, True, window=2, stride=3) == [
        "#........",
        "##.......",
        ".##......",
        "#.##.....",
        ".#.##....",
        "..#.##...",
        "#..#.##..",
        ".#..#.##.",
        "..#..#.##",
    ]
    assert drawn(9, False, window=2, stride=4) == [
        "##..#...#",
        "###..#...",
        ".###..#..",
        "..###..#.",
        "#..###..#",
        ".#..###..",
        "..#..###.",
        "...#..###",
        "#...#..##",
    ]


def test_absolute_columns_stay() -> None:
    assert drawn(9, True, window=2, stride=3, columns="absolute") == [
        "#........",
        "##.......",
        ".##......",
        "..##.....",
        "..###....",
        "..#.##...",
        "..#..##..",
        "..#..###.",
        "..#..#.##",
    ]


def test_absolute_columns_are_counted_from_the_first_real_token() -> None:
    mechanism = build_mechanism("strided", num_heads=1, head_dim=4, window=1, stride=3, columns="absolute")
    padding = torch.tensor([[False, True, True, True, True, True, True, True]])
    seen = visible(mechanism, 8, True, padding)
    assert seen[0, 0, 7].nonzero()[:, 0].tolist() == [3, 6, 7]


@every_cell(
    ("options", "sentence"),
    [
        ({"window": 0}, "'window' of mechanism 'strided' is 0"),
        ({"stride": -2}, "'stride' of mechanism 'strided' is -2"),
        ({"columns": "absolut"}, "Did you mean 'absolute'"),
    ],
    ids=str,
)
def test_impossible_values_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        build_mechanism("strided", num_heads=1, head_dim=4, **options)


@every_cell("length", [300, 400, 511, 512, 700])
@every_cell("causal", [False, True])
def test_a_stride_beyond_the_text_leaves_the_window(length: int, causal: bool) -> None:
    q, k, v = (torch.randn(1, 2, length, 8, dtype=torch.float64) for _ in range(3))
    options = {"window": 16, "stride": 512, "columns": "absolute", "causal": causal}
    torch.testing.assert_close(attend(q, k, v, "strided", **options), reference_attend(q, k, v, "strided", **options))
