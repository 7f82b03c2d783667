"""A trained position table becomes longer without touching what it knows."""

from __future__ import annotations

import pytest
import torch

from hf_longattn.errors import OptionError
from hf_longattn.positions.tables import STRATEGIES, extend_table, keeps_old_rows, unchanged_rows
from tests.cases import every_case


def table(rows: int = 10, width: int = 4) -> torch.Tensor:
    return torch.arange(rows * width, dtype=torch.float32).reshape(rows, width)


def test_tile_repeats_the_whole_position_table() -> None:
    old = table(5)
    assert torch.equal(extend_table(old, 12, offset=0, strategy="tile"), torch.cat([old, old, old[:2]]))


def test_special_rows_of_a_position_table_are_kept_once() -> None:
    old = torch.randn(514, 8)
    new = extend_table(old, 4098, offset=2, strategy="tile")
    assert torch.equal(new[:514], old)
    assert torch.equal(new[514:1026], old[2:])
    assert new.shape == (4098, 8)


def test_interpolation_of_a_position_table_keeps_the_ends_and_is_linear() -> None:
    new = extend_table(table(5), 9, offset=0, strategy="interpolate")
    assert torch.equal(new[::2], table(5))
    assert torch.equal(new[1::2], (table(5)[:-1] + table(5)[1:]) / 2)


def test_interpolation_leaves_special_rows_of_a_position_table_alone() -> None:
    old = table(7)
    new = extend_table(old, 12, offset=2, strategy="interpolate")
    assert torch.equal(new[:3], old[:3])
    assert torch.equal(new[-1], old[-1])


def test_stretching_77_positions_to_248_is_the_table_of_long_clip() -> None:
    """Zhang et al. 2024, section 3.1, row by row: four rows for each step, and the last step continued by its quarters."""
    old, kept = torch.randn(77, 8, dtype=torch.float64), 20
    expected = [*old[:kept]]
    for row in range(kept, 76):
        expected += [((4 - quarter) * old[row] + quarter * old[row + 1]) / 4 for quarter in range(4)]
    expected += [old[76] + quarter * (old[76] - old[75]) / 4 for quarter in range(4)]
    assert torch.allclose(extend_table(old, 248, offset=0, strategy="stretch"), torch.stack(expected), rtol=0, atol=1e-14)


@every_case(("strategy", "kept"), [("stretch", 20), ("stretch:1", 1), ("stretch:62", 62)])
@every_case("new_rows", [65, 100, 512])
def test_stretching_a_position_table_keeps_its_first_rows(strategy: str, kept: int, new_rows: int) -> None:
    old = torch.randn(66, 8)
    new = extend_table(old, new_rows + 2, offset=2, strategy=strategy)
    assert unchanged_rows(strategy, 64) == kept + 1
    assert torch.equal(new[: kept + 3], old[: kept + 3])
    assert not torch.equal(new[kept + 3], old[kept + 3])


def test_random_rows_of_a_position_table_follow_its_spread() -> None:
    old = torch.randn(256, 64) * 0.3
    new = extend_table(old, 2048, offset=0, strategy="random")
    assert torch.equal(new[:256], old)
    assert new[256:].std().item() == pytest.approx(old.std().item(), rel=0.02)
    assert torch.equal(new, extend_table(old, 2048, offset=0, strategy="random"))


@every_case("strategy", STRATEGIES)
@every_case("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_strategy_for_position_tables_keeps_dtype_and_source(strategy: str, dtype: torch.dtype) -> None:
    old = torch.randn(6, 4).to(dtype)
    before = old.clone()
    new = extend_table(old, 15, offset=1, strategy=strategy)
    assert new.dtype == dtype
    assert new.is_contiguous()
    assert torch.equal(old, before)
    assert torch.equal(extend_table(old, 6, offset=1, strategy=strategy), old)
    assert torch.equal(new[:6], old) == keeps_old_rows(strategy)


@every_case(
    ("arguments", "sentence"),
    [
        ({"new_rows": 9, "offset": 2}, "a maximum length of at least 8"),
        ({"new_rows": 20, "offset": 10}, "cannot start with 10 special rows"),
        ({"new_rows": 20, "offset": 0, "strategy": "tiles"}, "Did you mean 'tile'"),
        ({"new_rows": 20, "offset": 0, "strategy": "stretch"}, "keep fewer with stretch:8"),
        ({"new_rows": 20, "offset": 8, "strategy": "stretch"}, "A table of 2 positions .* choose interpolate instead"),
        ({"new_rows": 20, "offset": 0, "strategy": "stretch:few"}, "give a number of at least 1"),
    ],
)
def test_position_tables_that_cannot_be_extended_are_refused(arguments: dict, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        extend_table(table(10), **arguments)
