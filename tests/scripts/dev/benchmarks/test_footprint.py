"""Peak memory of several mechanisms: one process for each pass, one table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_longattn.errors import OptionError
from scripts.dev.benchmarks.app import app
from scripts.dev.benchmarks.case import Case
from scripts.dev.benchmarks.footprint import footprint_table, run_footprint


@pytest.mark.thorough
@pytest.mark.usefixtures("warm_memory")
def test_memory_benchmark_stores_mebibytes_and_growth(tmp_path: Path) -> None:
    shape = ["--lengths", "512,2K", "--heads", "2", "--head-dim", "16", "--output-dir", str(tmp_path)]
    done = CliRunner().invoke(app, ["memory", "--mechanism", "linear", "--causal", *shape])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "memory-causal.json").read_text())
    assert record["case"]["backward"]
    assert len(record["results"][0]["mebibytes"]) == 2
    assert "`linear`" in footprint_table(record)


@pytest.mark.parametrize(("mechanisms", "lengths"), [([], [64, 128]), (["full"], [64])])
def test_memory_benchmark_needs_mechanisms_and_two_lengths(mechanisms: list[str], lengths: list[int]) -> None:
    with pytest.raises(OptionError, match="two lengths or more"):
        run_footprint(mechanisms, lengths, Case())
