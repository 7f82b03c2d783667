"""Mechanisms on grids against SDPA: a check before any time, one table of times, memory and its growth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_longattn.errors import LongAttentionError
from scripts.dev import RESULTS
from scripts.dev.benchmarks import on_grids
from scripts.dev.benchmarks.app import app
from scripts.dev.benchmarks.attention.ours import Ours
from scripts.dev.benchmarks.case import Case


@pytest.mark.slow  # test_grid_models has a command of the same kind
@pytest.mark.usefixtures("warm_memory")
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


def test_memory_is_measured_without_partial_windows_too() -> None:
    for options, sides in (({"window": 14}, [56, 126]), ({"window": (4, 6)}, [60, 120]), ({"window": 16}, None)):
        assert on_grids.sides_of_whole_windows(Case("window2d", options), [64, 128]) == sides
    assert on_grids.sides_of_whole_windows(Case("local2d", {"radius": 3}), [64, 128]) is None
    record = json.loads((RESULTS / "grid.json").read_text())
    whole = {result["mechanism"]: result["whole_windows"]["exponent"] for result in record["results"] if "whole_windows" in result}
    assert set(whole) == {"window2d:window=14", "window2d:window=14,shift=alternate"}
    assert all(f"`{mechanism}`: " in on_grids.grid_table(record) for mechanism in whole)
    assert (RESULTS / "grid.md").read_text() == on_grids.grid_table(record)
