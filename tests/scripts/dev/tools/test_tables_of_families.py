"""transformers' own suite ran on every family that the tests run in full."""

from __future__ import annotations

from scripts.dev import RESULTS
from scripts.dev.benchmarks.report import stored_study
from scripts.dev.tools.small_models import IN_FULL


def test_every_family_is_in_the_table_of_transformers_own_suite() -> None:
    ran = {name.removeprefix("long_") for name in stored_study(RESULTS / "model_tester")["families"]}
    command = "python -m scripts.dev.tools.run_transformers_tests NAME --output scripts/dev/results"
    assert not {*IN_FULL} - ran, f"missing in results/model_tester.json; type {command}"
