"""The comparison of converted models with their originals in the same precision: equality first, paired ratios, tables from the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_longattn.engines.cpu.onednn import cpu_computes_bf16
from scripts.dev.benchmarks import same_precision
from scripts.dev.benchmarks.same_precision import MODES, TOLERANCE, brief, build, difference, fastest, in_mode, markdown, ratios, time_pair
from tests.grids import quickly


def record(after: float = 8.0) -> dict[str, Any]:
    """A stored record in which every original takes 10 ms, and every converted model ``after`` ms, in bf16 half of both."""
    turns = {mode: [[5.0, after / 2]] * 3 if mode.startswith("bf16") else [[10.0, after]] * 3 for mode in MODES}
    about = {"processor": "a processor", "threads": 1, "torch": "2", "transformers": "5", "date": "2026-01-01"}
    lengths = {"512": 0, "1024": 0}
    return {
        "machine": about,
        "layers": 4,
        "differences": dict.fromkeys(MODES, 1e-6),
        "milliseconds": {mode: dict.fromkeys(lengths, turns[mode]) for mode in MODES},
    }


def test_ratios_of_speed_are_medians_of_turns_in_the_same_precision() -> None:
    assert all(value == 1.25 for by_length in ratios(record()).values() for value in by_length.values())
    assert set(fastest(record()).values()) == {"bf16"}


def test_table_of_speeds_names_the_machine_and_what_is_slower() -> None:
    assert "Nowhere is it slower by more than 3 %." in markdown(record())
    assert "Slower than its original by more than 3 %: fp32 at 512 tokens (0.95)" in markdown(record(10.5))
    assert "a processor" in markdown(record())
    assert "| fp32 | 1.25 | 1.25 |" in brief(record())


@pytest.mark.skipif(not cpu_computes_bf16(), reason="this processor computes no bf16")
@pytest.mark.parametrize("mode", quickly(["fp32", "int8, optimised"], ("fp32",)))
def test_speed_comparison_compares_outputs_under_a_dense_mask(mode: str) -> None:
    pair = [in_mode(model, mode) for model in build(layers=1)]
    assert difference((pair[0], pair[1]), 600) < TOLERANCE[mode.partition(",")[0]]
    with torch.no_grad():
        pair[1].embeddings.LayerNorm.bias += 1
    assert difference((pair[0], pair[1]), 600) > TOLERANCE[mode.partition(",")[0]]


def test_timed_turns_are_paired_and_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_precision, "TURNS", (3, 5))
    assert len(time_pair((torch.nn.Identity(), torch.nn.Identity()), 8, seconds=0.0)) == 3
    assert len(time_pair((torch.nn.Identity(), torch.nn.Identity()), 8, seconds=60.0)) == 5


def test_speed_comparison_does_not_store_models_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_precision, "measure", lambda *_: "stop")
    assert same_precision.main(["--output", str(tmp_path / "result")]) == 1
    assert not list(tmp_path.iterdir())
