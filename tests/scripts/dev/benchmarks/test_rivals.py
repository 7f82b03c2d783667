"""The benchmark against rivals: its tables, verdicts, turns, and what it says of a rival that is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.dev.benchmarks.rivals import measure, plan, prepare, run, table
from tests.cases import every_case

EXACT = {"difference": 1e-6, "least_cosine": 1.0}
GROUP = plan.Group("bert", 512, ("torch-longattn", "torch-sdpa"))


def row(way: str, seconds: float, mebibytes: float, **values: Any) -> dict[str, Any]:
    found = {**run.row_of(GROUP, way), "seconds": seconds, "mebibytes": mebibytes, **EXACT}
    return found | {"processor_seconds": seconds, "process_mebibytes": mebibytes, "passes": 1} | values


@every_case(
    ("way", "cosine", "difference", "expected"),
    [
        ("torch-sdpa", 1.0, 1e-6, "equal"),
        ("torch-sdpa", 1.0, 1e-2, "differs"),
        ("torch-sdpa", 0.999, 1e-6, "differs"),
        ("llama-q8_0", 0.998, 1e-2, "close"),
        ("ort:int8-tf-onnx", 0.85, 0.2, "differs"),
        ("torch-longformer-optimised", 0.2, 1.0, "another function"),
    ],
)
def test_verdict_of_outputs(way: str, cosine: float, difference: float, expected: str) -> None:
    assert table.verdict(row(way, 1, 1, least_cosine=cosine, difference=difference)) == expected


def test_tables_say_where_a_rival_wins_and_which_did_not_run() -> None:
    without = row("torch-longformer-optimised", 1.5, 40)  # it is not compared
    without = {name: value for name, value in without.items() if name not in EXACT}
    rows = [
        row("torch-longattn", 2, 50),
        without,
        row("ov:tf-ov", 1, 10),
        row("torch-sdpa", 0.1, 1, least_cosine=0.5),  # wrong outputs cannot win
        row("llama-q8_0", 4, 5, least_cosine=0.998),
        run.row_of(GROUP, "llama-f32", error="llama.cpp is not there"),
    ]
    record = {**run.about_run(Path()), "rows": rows}
    first, second = table.duels(rows, True).splitlines()[2:]
    rival = "transformers.exporters, OpenVINO"
    assert first.endswith(f"| **{rival}, 2.00 ×** | **{rival}, 10, 5.00 ×** |")
    assert second.startswith("| BERT-base's shape; ours is another function | 512 | converted to longformer")
    text = table.markdown(record)
    assert table.line(without).endswith("1.50 s, 40 MiB, another function")
    assert "| **llama.cpp Q8_0, 5, 10.00 ×** |" in text
    assert "| sdpa, PyTorch | 0.100 | 1 | 1e-06 | 0.500000 (differs) |" in text
    assert "BERT-base's shape by llama.cpp F32 at 512 tokens: llama.cpp is not there." in text
    assert "512" in table.brief(record)


class Answers:
    """A process with ready answers."""

    def __init__(self, *seconds: float, **values: Any) -> None:
        self.answers = [row("torch-sdpa", number, 10 * number, **values) for number in seconds]

    def make_pass(self) -> dict[str, Any]:
        return self.answers.pop(0)

    def end(self) -> None:
        self.answers.clear()


def test_turns_keep_the_best_time_and_leave_slow_and_wrong_ways() -> None:
    batch: Any = {"a": Answers(3, 1, 2), "b": Answers(20, 1), "c": Answers(1, 1, least_cosine=0.1)}
    rows: dict[str, dict[str, Any]] = {way: {} for way in batch}
    run.take_turns(batch, rows, 3)
    assert [(found["seconds"], found["mebibytes"], found["passes"]) for found in rows.values()] == [
        (1, 30, 3),
        (20, 200, 1),
        (1, 10, 1),
    ]


def test_rivals_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "LLAMA_CPP", tmp_path / "llama.cpp")
    reasons = {"llama-f32": "llama.cpp", "ort:st-onnx": "sentence-transformers with optimum"}
    for way, reason in reasons.items():
        file = plan.file_of(tmp_path, "minilm", way)
        assert prepare.make(tmp_path, "minilm", file) == f"{reason} is not there"
    assert run.missing(tmp_path, GROUP, "torch-sdpa", {}) == "hf was not made"


def test_plan_names_known_ways_and_every_process_compares(tmp_path: Path) -> None:
    assert {way for group in [*plan.PLAN, *plan.checked()] for way in group.ways} == {*plan.WAYS}
    np.save(tmp_path / "expected.npy", np.eye(2, dtype=np.float32))
    found = measure.compared(np.array([[1, 0], [1, 1]], dtype=np.float32), tmp_path / "expected.npy")
    assert found == pytest.approx({"difference": 1.0, "least_cosine": 0.5**0.5})
