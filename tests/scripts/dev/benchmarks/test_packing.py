"""Packed and padded batches: equal losses for every task, lengths as promised, stored results kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from scripts.dev.benchmarks import packing
from scripts.dev.benchmarks.packing import SETTINGS, Setting, draw_documents, draw_lengths, main, markdown, measure

LENGTHS = [40, 9, 70, 24, 33, 18]


@pytest.fixture
def short_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "draw_lengths", lambda count, generator: LENGTHS[:count])


def test_lengths_are_log_normal() -> None:
    lengths = torch.tensor(draw_lengths(4000, torch.Generator().manual_seed(0)), dtype=torch.float64)
    assert lengths.mean().item() == pytest.approx(1000, rel=0.06)
    assert lengths.max().item() <= 4096
    assert lengths.log().std().item() == pytest.approx(0.9, abs=0.1)


@pytest.mark.parametrize(
    ("family", "mechanism", "task"),
    [("bert", "longformer", "classes"), ("bert", "window", "masked"), ("gpt2", "window", "next"), ("llama", "hybrid", "next")],
)
def test_packed_losses_are_padded_ones(short_documents: None, family: str, mechanism: str, task: str) -> None:
    setting = Setting(family, mechanism, {"window": 16}, task, documents=6, batch_size=2)
    found = measure(setting)
    assert len(found["losses"]["packed"]) == 2
    assert found["largest_difference_of_losses"] < 1e-5
    assert found["relative_difference_of_gradients"] < 1e-4
    assert found["padding"]["padded"] == pytest.approx(1 - sum(LENGTHS) / (80 + 140 + 66))
    assert set(found["tokens_per_second"]) == set(packing.WAYS)
    assert setting.name in markdown({setting.name: found})


def test_documents_have_the_labels_of_the_task() -> None:
    rows = {task: draw_documents(Setting("bert", "window", {}, task, documents=3), 100, 0) for task in ("classes", "masked", "next")}
    assert [row["labels"] for row in rows["classes"]] == [0, 1, 0]
    assert rows["next"][0]["labels"] == rows["next"][0]["input_ids"]
    masked = [label != -100 for label in rows["masked"][0]["labels"]]
    assert [token == 4 for token in rows["masked"][0]["input_ids"]] == masked
    assert 0.05 < sum(masked) / len(masked) < 0.3


def test_the_command_keeps_other_results(short_documents: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [dataclasses.replace(one, documents=4, batch_size=2) for one in SETTINGS if not one.base][:2]
    monkeypatch.setattr(packing, "SETTINGS", tuple(small))
    file = tmp_path / "packing.json"
    for setting in small:
        assert main(["--only", setting.name, "--output", str(tmp_path / "packing")]) == 0
    first = json.loads(file.read_text())
    assert list(first) == [one.name for one in small]
    monkeypatch.setattr(packing, "compare", None)  # is not called again
    assert main(["--only", small[0].name, "--keep-comparison", "--output", str(tmp_path / "packing")]) == 0
    second = json.loads(file.read_text())
    assert second[small[0].name]["losses"] == first[small[0].name]["losses"]
    assert second[small[0].name]["elapsed_seconds"] != first[small[0].name]["elapsed_seconds"]
    assert second[small[1].name] == first[small[1].name]
    assert all(one.name in (tmp_path / "packing.md").read_text() for one in small)


def test_an_unknown_setting_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "large"]) == 1
    assert "there is no setting 'large'" in capsys.readouterr().err
