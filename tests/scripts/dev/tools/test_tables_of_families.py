"""Every family has a row, and every row all its cells, in every stored table of families: texts, pages, images, videos, sound, towers."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

from scripts.dev import RESULTS
from scripts.dev.benchmarks.report import stored_study
from scripts.dev.tools import check_families
from scripts.dev.tools.small_models import IN_FULL
from tests.cases import every_case

stored = functools.cache(stored_study)


def checked(base: str) -> set[str]:
    """Columns of the table of families without a cell."""
    cells = stored(RESULTS / "families")["families"].get(base, {}).get("cells", {})
    return {title for title in check_families.CHECKS if not cells.get(title, {}).get("detail")}


def in_the_suite(base: str) -> set[str]:
    """The family, unless transformers' own suite ran."""
    return {base} - {name.removeprefix("long_") for name in stored(RESULTS / "model_tester")["families"]}


TABLES: dict[str, tuple[Callable[[str], set[str]], str]] = {
    "families": (checked, "scripts.dev.tools.check_families {base}"),
    "model_tester": (in_the_suite, "scripts.dev.tools.run_transformers_tests {base} --output scripts/dev/results"),
}
"""Table -> what it lacks of a family, and the command that completes it."""


@every_case(("table", "base"), itertools.product(sorted(TABLES), sorted(IN_FULL)))
def test_every_family_has_all_cells_in_every_table(table: str, base: str) -> None:
    lacking, command = TABLES[table]
    missing = lacking(base)
    assert not missing, f"{base} lacks {sorted(missing)} in results/{table}.json; type python -m {command.format(base=base)}"


def test_stored_page_of_families_says_what_the_results_say() -> None:
    families = stored(RESULTS / "families")
    page = check_families.markdown(families)
    assert (RESULTS / "families.md").read_text(encoding="utf-8") == page
