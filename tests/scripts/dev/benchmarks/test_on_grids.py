"""Mechanisms on grids against SDPA: a check before any time, one table of times, memory and its growth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_longattn.errors import LongAttentionError
from scripts.dev.benchmarks import on_grids
from scripts.dev.benchmarks.app import app
from scripts.dev.benchmarks.attention.ours import Ours
from scripts.dev.benchmarks.case import Case


def test_the_command_stores_times_and_memory(tmp_path: Path) -> None:
    lines = ["window2d:window=4,shift=alternate", "local2d:radius=2", "segmented:block_size=16,integration=pooled,order=tiles:4x4"]
    chosen = [word for line in lines for word in ("--mechanism", line)]
    shape = ["--sides", "16,32", "--heads", "2", "--head-dim", "16", "--repeats", "1", "--memory", "--output-dir", str(tmp_path)]
    done = CliRunner().invoke(app, ["grid", *chosen, *shape])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "grid.json").read_text())
    assert [result["mechanism"] for result in record["results"]] == ["sdpa", *lines]
    for result in record["results"]:
        assert {(entry["side"], entry["backward"]) for entry in result["times"]} == {(16, False), (16, True), (32, False), (32, True)}
        assert len(result["mebibytes"]) == 2
    assert (tmp_path / "grid.md").read_text() == on_grids.grid_table(record)


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Ours.forward
    monkeypatch.setattr(Ours, "forward", lambda self: forward(self) * 1.01)
    with pytest.raises(LongAttentionError, match="nothing was timed"):
        on_grids.run_on_grids(["axial"], [16], Case(heads=2, head_dim=16), repeats=1)
