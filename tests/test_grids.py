"""The cells that the quick tests run."""

from __future__ import annotations

import itertools

import pytest

from tests.grids import all_pairs, grid, pairwise


@pytest.mark.parametrize("sizes", [(1, 1), (5, 3), (2, 2, 2), (30, 3, 2, 2), (4, 1, 7)])
def test_every_two_values_meet(sizes: tuple[int, ...]) -> None:
    cells = all_pairs(*sizes)
    assert cells == all_pairs(*sizes)
    for first, second in itertools.combinations(range(len(sizes)), 2):
        assert {(cell[first], cell[second]) for cell in cells} == {*itertools.product(range(sizes[first]), range(sizes[second]))}


def test_the_rest_of_the_product_is_slow() -> None:
    cells = pairwise(range(10), range(3), range(2), range(2), fully=lambda first, *rest: first == 4)
    assert len(cells) == 120
    quick = [cell.values for cell in cells if not cell.marks]
    assert 30 <= len(quick) < 50
    assert sum(values[0] == 4 for values in quick) == 12
    assert [bool(cell.marks) for cell in grid([(1, 2), (3, 4)], lambda a, b: a == 1)] == [False, True]
