"""The decoding benchmark: it checks first, counts every tensor once, and stores what the documents show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_longattn import LongAttentionConfig
from hf_longattn.errors import OptionError
from scripts.dev.benchmarks import decoding
from scripts.dev.benchmarks.app import app
from scripts.dev.benchmarks.decoding import DecodeShape, decoding_table, run_decoding

SMALL = ["--heads", "2", "--head-dim", "8", "--steps", "2", "--lengths", "64,320"]


def test_decoding_benchmark_stores_time_and_memory(tmp_path: Path) -> None:
    chosen = ["--attention", "full", "--attention", "window:window=32", "--attention", "linear,window:window=16"]
    done = CliRunner().invoke(app, ["decode", *chosen, *SMALL, "--full-up-to", "64", "--output-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "decode.json").read_text())
    sizes = {(one["attention"], one["length"]): one["mebibytes"] for one in record["results"]}
    assert ("full", 320) not in sizes
    assert sizes["window:window=32", 64] == sizes["window:window=32", 320]
    assert sizes["linear,window:window=16", 64] == sizes["linear,window:window=16", 320] > 0
    assert "–" in decoding_table(record)


def test_decoding_benchmark_does_not_time_unequal_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "difference", lambda model, seed: 0.5)
    with pytest.raises(OptionError, match="nothing was timed"):
        run_decoding({"full": LongAttentionConfig("full")}, [8], DecodeShape(1, 2, 8, 1), baseline_up_to=8)
    with pytest.raises(OptionError, match="one length or more"):
        run_decoding({}, [], DecodeShape(), baseline_up_to=8)
