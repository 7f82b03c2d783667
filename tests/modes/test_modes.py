"""Every two ways to call a model together give what its sequences give alone, or a refusal: cell by cell as the stored table says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from scripts.dev.tools.small_models import TEXT_FAMILIES
from tests.cases import every_case
from tests.modes.crossings import ROWS, Crossing
from tests.modes.stored import stored_cells
from tests.modes.ways import EXACT_LENGTH, WAYS, decodes

STORED = stored_cells()
QUICK = [name for name, way in WAYS.items() if not way.slow]
ALONE = [(row, name, name) for row in ROWS for name in QUICK]
ALL = [(row, *pair) for row in ROWS for pair in itertools.combinations_with_replacement(WAYS, 2)]


def rotated() -> Iterator[tuple[str, str, str]]:
    """Every pair on one row that has it, the rows in turn."""
    for number, (first, second) in enumerate(itertools.combinations(QUICK, 2)):
        rows = [row for row in ROWS if not STORED.get(row, {}).get(f"{first} × {second}", "").startswith("none")]
        if rows:
            yield rows[number % len(rows)], first, second


ROTATED = [*rotated()]
"""Slow tests have every pair on every row."""


def check(row: str, first: str, second: str) -> None:
    outcome = Crossing(row, first, second).outcome()
    stored = STORED.get(row, {}).get(f"{first} × {second}")
    assert stored == str(outcome), "the table says something else; after a change that is meant, run python -m tests.modes"


@every_case(("row", "first", "second"), ALONE + ROTATED, by="row", of=6, code=lambda row, first, second: first if first == second else "")
def test_two_ways_of_calling_together_give_the_stored_outcome(row: str, first: str, second: str) -> None:
    check(row, first, second)


@every_case("row", [row for row in ROWS if not decodes(row)])
def test_a_text_within_exact_length_is_attended_in_full(row: str) -> None:
    """As by a model of full attention with the same weights, and a longer one beside it is not."""
    batch, in_full = Crossing(row, "right padded", "exact length"), Crossing(row, "right padded")
    in_full.attention = {"mechanism": "full"}
    for found, expected, sequence in zip(batch.run()[0], in_full.expected()[0], batch.sequences(), strict=True):
        equal = [torch.allclose(found[name], expected[name], rtol=0, atol=1e-8) for name in expected]
        assert all(equal) if len(sequence) <= EXACT_LENGTH else not any(equal)


@pytest.mark.slow
@every_case(("row", "first", "second"), sorted({*ALL} - {*ALONE} - {*ROTATED}), by="row")
def test_every_pair_of_ways_on_every_row_gives_the_stored_outcome(row: str, first: str, second: str) -> None:
    check(row, first, second)


@pytest.mark.slow
@every_case("base", sorted({*TEXT_FAMILIES} - {*ROWS}))
def test_each_way_of_calling_every_other_family_is_equal_or_refused(base: str) -> None:
    """No stored outcome: equal, refused, or not there."""
    for name in QUICK:
        Crossing(base, name).outcome()
