"""Every family has a row, and every row all its cells, in every stored table of families: texts, pages, pictures, videos, sound, towers."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from hf_longattn.mechanisms import list_mechanisms
from scripts.dev import RESULTS
from scripts.dev.tools import check_families, family_reach, native_twins
from scripts.dev.tools.small_models import IN_FULL, TEXT_FAMILIES
from tests.alike import code_of_family
from tests.cells import every_cell


@cache
def stored(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def checked(base: str) -> set[str]:
    """Columns of the table of families without a cell."""
    cells = stored("families")["families"].get(base, {}).get("cells", {})
    return {title for title in check_families.TITLES if title != "model_tester" and not cells.get(title, {}).get("detail")}


def in_the_suite(base: str) -> set[str]:
    """The family, unless transformers' own suite ran."""
    return {base} - {name.removeprefix("long_") for name in stored("model_tester")["families"]}


def twinned(base: str) -> set[str]:
    """Mechanisms with a twin that is not stored, or with a stored twin that there is not."""
    of_text = base in TEXT_FAMILIES
    cells = stored("native_twins")["twins" if of_text else "others"]
    if of_text:
        found = {name for name in list_mechanisms(grid=False) if native_twins.text_refusal(base, name) is None}
    else:
        found = {name for name in list_mechanisms() if "twin" in native_twins.planned_cell(base, name)}
    return found ^ {name for name, twins in cells.items() if base in twins}


def audited(base: str) -> set[str]:
    """The family, unless its reach was measured, or it is said why not."""
    row = stored("reach")["families"].get(base, {})
    return set() if row.get("reason") or row.get("agrees") else {base}


TABLES: dict[str, tuple[Callable[[str], set[str]], str]] = {
    "families": (checked, "scripts.dev.tools.check_families {base}"),
    "model_tester": (in_the_suite, "scripts.dev.tools.run_transformers_tests {base} --output scripts/dev/results"),
    "native_twins": (twinned, "scripts.dev.tools.native_twins --only {base}"),
    "reach": (audited, "scripts.dev.tools.family_reach {base}"),
}
"""Table -> what it lacks of a family, and the command that completes it; for a family that does not read text, `--only none`."""


@every_cell("base", sorted(IN_FULL))
@every_cell("table", sorted({*TABLES} - {"native_twins"}))
def test_every_family_has_all_cells(table: str, base: str) -> None:
    check_cells(table, base)


@every_cell("base", sorted(IN_FULL), of=4, alike=code_of_family)
def test_every_family_has_all_twins(base: str) -> None:
    check_cells("native_twins", base)


def check_cells(table: str, base: str) -> None:
    lacking, command = TABLES[table]
    missing = lacking(base)
    only = base if base in TEXT_FAMILIES or table != "native_twins" else "none"
    assert not missing, f"{base} lacks {sorted(missing)} in results/{table}.json; type python -m {command.format(base=only)}"


@pytest.mark.parametrize("table", sorted({*TABLES} - {"native_twins"}))
def test_a_family_without_a_row_is_named(table: str) -> None:
    assert TABLES[table][0]("a_new_family")


def test_stored_pages_say_what_the_results_say() -> None:
    reach, twins = stored("reach"), stored("native_twins")
    assert (RESULTS / "reach.md").read_text(encoding="utf-8") == family_reach.page(reach)
    described = f"{twins['machine']['processor']} with transformers {twins['machine']['transformers']}"
    page = native_twins.markdown(twins["twins"], twins["others"], described)
    assert (RESULTS / "native_twins.md").read_text(encoding="utf-8") == page
