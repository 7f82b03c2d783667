"""The cells that the quick tests run."""

from __future__ import annotations

import itertools

import pytest

from tests.grids import all_pairs


@pytest.mark.parametrize("sizes", [(1, 1), (5, 3), (2, 2, 2), (30, 3, 2, 2), (4, 1, 7)])
def test_all_pairs_has_every_two_values_of_two_axes(sizes: tuple[int, ...]) -> None:
    cells = all_pairs(*sizes)
    assert cells == all_pairs(*sizes)
    for first, second in itertools.combinations(range(len(sizes)), 2):
        assert {(cell[first], cell[second]) for cell in cells} == {*itertools.product(range(sizes[first]), range(sizes[second]))}
