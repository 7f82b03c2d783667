"""Peak memory: one fresh process for each pass, one table for several mechanisms, and the exponent of growth."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hf_longattn.errors import LongAttentionError, OptionError
from scripts.dev.benchmarks import memory
from scripts.dev.benchmarks.app import app
from scripts.dev.benchmarks.case import Case
from scripts.dev.benchmarks.memory import Memory, MiB, exponent, footprint_table, growth, measure_memory, run_footprint


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_exponent_of_memory_is_that_of_the_data(power: float) -> None:
    assert exponent([Memory("x", n, 0.0, 3e-5 * n**power) for n in (4096, 8192, 16384, 32768)]) == pytest.approx(power)


def test_measured_peak_includes_what_a_call_allocates() -> None:
    side = 4096
    assert 0.9 * 4 * side**2 / MiB < growth(lambda: torch.ones(side, side)) < 2 * 4 * side**2 / MiB


@pytest.mark.slow
def test_memory_of_a_pass_is_measured_in_a_process_of_its_own() -> None:
    measured = measure_memory("attention", "longattn", Case("window", {"window": 64}, length=8192, heads=8))
    assert 5 < measured.extra < 500
    assert measured.inputs > 0


def test_failed_measurement_of_memory_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "Traceback ...\nMemoryError: no memory\n")
    monkeypatch.setattr(memory.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(LongAttentionError, match=r"Measuring the memory of sdpa at 64 tokens failed: MemoryError: no memory"):
        measure_memory("attention", "sdpa", Case("window", length=64, heads=2, head_dim=16))


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
