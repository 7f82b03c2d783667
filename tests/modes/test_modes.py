"""Every two ways to call a model together give what its sequences give alone, or a refusal: cell by cell as the stored table says."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from hf_longattn.families import FAMILIES
from hf_longattn.private_apis import cpu_computes_bf16
from tests.modes.cells import FAMILIES_IN_QUICK, Cell
from tests.modes.ways import WAYS

STORED = json.loads((Path(__file__).resolve().parents[2] / "docs" / "results" / "modes.json").read_text(encoding="utf-8"))
ROUNDING = ("packed bf16", "packed int8")
QUICK = [name for name, way in WAYS.items() if not way.slow]
ALONE = [(base, name, name) for base in FAMILIES_IN_QUICK for name in QUICK]
PAIRS = list(itertools.combinations(QUICK, 2))
ROTATED = [(FAMILIES_IN_QUICK[number % len(FAMILIES_IN_QUICK)], *pair) for number, pair in enumerate(PAIRS)]
"""Every pair on one family, each family with as many pairs; slow tests have all of both."""
ALL = [(base, *pair) for base in FAMILIES_IN_QUICK for pair in itertools.combinations_with_replacement(WAYS, 2)]


def check(base: str, first: str, second: str) -> None:
    if not cpu_computes_bf16() and {first, second} & {*ROUNDING}:
        pytest.skip("this processor computes no bf16")
    outcome = Cell(base, first, second).outcome()
    stored = STORED["cells"].get(base, {}).get(f"{first} × {second}")
    assert stored == str(outcome), "the table says something else; after a change that is meant, run python -m tests.modes"


@pytest.mark.parametrize(("base", "first", "second"), ALONE + ROTATED)
def test_two_ways_together(base: str, first: str, second: str) -> None:
    check(base, first, second)


@pytest.mark.slow
@pytest.mark.parametrize(("base", "first", "second"), sorted({*ALL} - {*ALONE} - {*ROTATED}))
def test_all_families(base: str, first: str, second: str) -> None:
    check(base, first, second)


@pytest.mark.slow
@pytest.mark.parametrize("base", sorted({*FAMILIES} - {*FAMILIES_IN_QUICK}))
def test_each_way_alone_on_every_other_family(base: str) -> None:
    """No stored outcome: equal, refused, or not there."""
    for name in QUICK:
        Cell(base, name).outcome()
