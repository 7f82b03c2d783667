"""transformers' own ModelTesterMixin on the Long families; scripts/dev/tools/run_transformers_tests.py stores a table."""

from __future__ import annotations

import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
import transformers

from scripts.dev.tools import run_transformers_tests as suite
from scripts.dev.tools.small_models import OF_EACH_KIND
from tests.fresh_processes import run_fresh

QUICK_FAMILIES = ["llama", "bart"]
QUICK = (
    "test_attention_outputs", "test_can_init_all_missing_weights", "test_config", "test_correct_missing_keys", "test_forward_signature",
    "test_gradient_checkpointing", "test_hidden_states_output", "test_inputs_embeds", "test_load_save_without_tied_weights", "test_resize_",
    "test_retain_grad", "test_save_load_keys", "test_tie",
)  # fmt: skip
"""Beginnings of the names of the tests that `make test` runs; the whole suite takes minutes for each family and is a slow test. That
outputs as a tuple are those by name, that a batch gives what its rows give, saving and training have tests of ours in tests/modes and
tests/modeling."""


def result_of(families: list[str], folder_for_report: Path, only: tuple[str, ...] = (), with_base: bool = False) -> dict[str, dict]:
    try:
        folder = suite.unpacked_sdist(suite.CACHE, transformers.__version__)
    except subprocess.CalledProcessError:
        pytest.skip(f"the sdist of transformers {transformers.__version__} is not in {suite.CACHE} and cannot be downloaded")
    report = folder_for_report / "report.xml"
    arguments, environment = suite.pytest_call(folder, suite.prepare(folder), families, with_base, report, only)
    run_fresh(*arguments, cwd=folder, env=environment, timeout=3000)
    return suite.table(report)


def test_long_llama_and_bart_pass_some_of_the_model_tests_of_transformers(tmp_path: Path) -> None:
    """In one process."""
    result = result_of(QUICK_FAMILIES, tmp_path, QUICK)
    assert {family: found["failures"] for family, found in result.items()} == {f"long_{family}": [] for family in QUICK_FAMILIES}
    assert all(found["passed"] >= 10 for found in result.values()), result


@pytest.mark.slow
@pytest.mark.parametrize("family", OF_EACH_KIND)
def test_long_families_pass_the_model_tests_of_transformers(family: str, tmp_path: Path) -> None:
    """Nothing fails, and what passes on the base passes, except for what is skipped with a reason."""
    result = result_of([family], tmp_path, with_base=True)
    reasons = [skip.get("message", "") for skip in ElementTree.parse(tmp_path / "report.xml").getroot().iter("skipped")]
    ours = result[f"long_{family}"]
    assert ours["failures"] == []
    assert ours["passed"] + sum(reason.startswith("skip list") for reason in reasons) >= result[family]["passed"] > 50
