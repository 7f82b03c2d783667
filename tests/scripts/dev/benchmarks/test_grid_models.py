"""Layouts of a ViT against SDPA: each is checked by its definition, then timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_longattn.engines import grid_windows
from hf_longattn.errors import LongAttentionError
from scripts.dev.benchmarks import grid_models
from scripts.dev.benchmarks.app import app
from scripts.dev.benchmarks.case import Case
from scripts.dev.benchmarks.implementations import build_implementation
from scripts.dev.benchmarks.memory import Memory

SMALL = Case("window2d", {"window": 4}, heads=2, head_dim=8, base="vit")
LAYOUTS = grid_models.LAYOUTS


@pytest.mark.slow
def test_grid_benchmark_stores_speed_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_models, "measure_memory", lambda kind, name, case: Memory(name, case.length, 1.0, 2.0))
    shape = ["--window", "4", "--heads", "2", "--head-dim", "8", "--repeats", "1", "--dtypes", "fp32", "--output-dir", str(tmp_path)]
    done = CliRunner().invoke(app, ["grid-models", "--sizes", "320", "--memory", *shape])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "grid_models.json").read_text())
    assert (tmp_path / "grid_models.md").read_text() == grid_models.grid_model_table(record)
    assert [check["implementation"] for check in record["checks"]] == ["full", *LAYOUTS]
    [entry] = record["results"]
    rows = {layout["layout"]: layout for layout in entry["layouts"]}
    assert list(rows) == ["sdpa", "no attention", "tiles", "overlapping tiles", *LAYOUTS]
    assert rows["sdpa"]["times_faster"] == 1
    assert [layout["mebibytes"] for layout in entry["layouts"]] == [2.0] * len(entry["layouts"])


@pytest.mark.thorough
def test_grid_benchmark_has_layouts_of_different_outputs() -> None:
    inputs = grid_models.ImageInputs(SMALL.on_grid(grid_models.CHECKED))
    names = ("sdpa", grid_models.NOTHING, *LAYOUTS)
    states = {name: build_implementation(grid_models.KIND, name, inputs).run(False) for name in names}
    for name, tensor in states.items():
        for other, beside in states.items():
            difference = float((tensor - beside).abs().max())
            assert difference == 0 if name == other else difference > 10 * grid_models.TOLERANCE["fp32"], (name, other)


@pytest.mark.thorough
def test_grid_benchmark_does_not_time_a_wrong_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = grid_windows.fused_attention
    monkeypatch.setattr(grid_windows, "fused_attention", lambda *args, **kwargs: fused(*args, **kwargs) * 1.1)
    with pytest.raises(LongAttentionError, match=r"'windows, 4 full' differs from its definition by .* in fp32, so nothing was timed"):
        grid_models.check_layouts(SMALL)


REFUSED = [(["--sizes", "100"], "not a multiple of the patch"), (["--dtypes", ""], "No dtype"), (["--dtypes", "fp8"], "fp8")]


@pytest.mark.parametrize(("words", "sentence"), REFUSED)
def test_grid_benchmark_refuses_sizes_and_dtypes_in_one_sentence(words: list[str], sentence: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["grid-models", *words, "--output-dir", str(tmp_path)])
    assert done.exit_code == 1
    assert sentence in done.output
    assert not list(tmp_path.iterdir())
