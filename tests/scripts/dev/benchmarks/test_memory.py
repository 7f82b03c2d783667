"""Peak memory: measured in a fresh process, and its exponent."""

from __future__ import annotations

import subprocess

import pytest
import torch

from hf_longattn.errors import LongAttentionError
from scripts.dev.benchmarks import memory
from scripts.dev.benchmarks.case import Case
from scripts.dev.benchmarks.memory import Memory, MiB, exponent, growth, measure_memory


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
