"""`fixed`: blocks and their summary columns, drawn."""

from __future__ import annotations

import pytest
import torch

from hf_longattn import build_mechanism
from hf_longattn.errors import OptionError
from tests.cells import every_cell
from tests.mechanisms.listed import image, visible


def drawn(length: int, causal: bool, padding: torch.Tensor | None = None, **options) -> list[str]:
    mechanism = build_mechanism("fixed", num_heads=1, head_dim=4, **options)
    return image(visible(mechanism, length, causal, padding)[0, 0])


def test_own_block_and_the_last_columns_of_each() -> None:
    assert drawn(11, True, block_size=4, num_summary=2) == [
        "#..........",
        "##.........",
        "###........",
        "####.......",
        "..###......",
        "..####.....",
        "..#####....",
        "..######...",
        "..##..###..",
        "..##..####.",
        "..##..#####",
    ]
    assert drawn(11, False, block_size=4, num_summary=1) == [
        "####...#...",
        "####...#...",
        "####...#...",
        "####...#...",
        "...#####...",
        "...#####...",
        "...#####...",
        "...#####...",
        "...#...####",
        "...#...####",
        "...#...####",
    ]


def test_blocks_begin_at_the_first_real_token() -> None:
    padding = torch.tensor([[False, True, True, True, True]])
    assert drawn(5, False, padding, block_size=2, num_summary=1)[1:] == [".##.#", ".##.#", "..###", "..###"]


@every_cell(
    ("options", "sentence"),
    [
        ({"block_size": 0}, "'block_size' of mechanism 'fixed' is 0"),
        ({"num_summary": 0}, "'num_summary' of mechanism 'fixed' is 0"),
        ({"block_size": 4, "num_summary": 5}, "give at most num_summary=4"),
    ],
    ids=str,
)
def test_impossible_values_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        build_mechanism("fixed", num_heads=1, head_dim=4, **options)
