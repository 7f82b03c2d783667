"""The table of transformers' own suite: families that did not run stay as they are stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers

from scripts.dev.tools.run_transformers_tests import failed_here, failures, markdown, name_on_base, store, table


def entry(passed: int) -> dict[str, Any]:
    return {"passed": passed, "failed": 0, "skipped": 1, "failures": []}


def test_stored_families_that_did_not_run_stay(tmp_path: Path) -> None:
    store({"long_bert": entry(5), "long_gpt2": entry(6)}, tmp_path)
    store({"long_t5": entry(7), "long_gpt2": entry(8)}, tmp_path)
    stored = json.loads((tmp_path / "model_tester.json").read_text())
    assert {name: one["passed"] for name, one in stored["families"].items()} == {"long_bert": 5, "long_gpt2": 8, "long_t5": 7}
    assert "| long_bert | 5 | 0 | 1 |" in (tmp_path / "model_tester.md").read_text()
    assert stored["transformers"] == transformers.__version__


def test_failure_that_the_base_shares_is_told_apart() -> None:
    shared = {**entry(5), "failed": 2, "failures": ["test_b", "test_a"], "failures_of_base": ["test_a"]}
    assert failed_here(shared) == ["test_b"]
    assert failures(shared) == " (test_a, as in the base, test_b)"
    assert "| long_bert | 5 | 2 (test_a, as in the base, test_b) | 1 |" in markdown({"long_bert": shared}, "5.0")


def test_backbones_are_counted_with_their_family(tmp_path: Path) -> None:
    cases = [("LongBeitTest", "test_config", ""), ("LongBeitBackboneTest", "test_config", "<failure/>"), ("PlainBeitTest", "test_a", "")]
    rows = "".join(f'<testcase classname="tests.models.{kind}" name="{name}">{inner}</testcase>' for kind, name, inner in cases)
    (tmp_path / "report.xml").write_text(f"<testsuites><testsuite>{rows}</testsuite></testsuites>")
    result = table(tmp_path / "report.xml")
    assert {name: (counts["passed"], counts["failures"]) for name, counts in result.items()} == {
        "long_beit": (1, ["backbone test_config"]),
        "beit": (1, []),
    }
    assert name_on_base("beit", "backbone test_config") == "(PlainBeitBackboneTest and test_config)"
    assert name_on_base("beit", "test_config") == "(PlainBeitTest and test_config)"


def test_stored_families_of_another_transformers_are_dropped(tmp_path: Path) -> None:
    store({"long_bert": entry(5)}, tmp_path)
    file = tmp_path / "model_tester.json"
    file.write_text(file.read_text().replace(transformers.__version__, "5.1.0"))
    store({"long_t5": entry(7)}, tmp_path)
    assert list(json.loads(file.read_text())["families"]) == ["long_t5"]
