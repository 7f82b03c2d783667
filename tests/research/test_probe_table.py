"""The table of probes: asked once, resumed, and written with what could not be asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from research import probe_table
from research.probe_table import Asked, main
from tests.evaluation.probes.small import byte_tokenizer, small_decoder, small_encoder


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study of two small models."""
    models = {"llama": small_decoder(mechanism="window", window=16), "encoder": small_encoder("MaskedLM", 128)}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)

    def rows() -> Iterator[Asked]:
        yield Asked("encoder", "original")
        yield Asked("llama", "window + sinks", {"mechanism": "window"})

    monkeypatch.setattr(probe_table, "rows", rows)
    monkeypatch.setattr(probe_table, "folder_of", lambda work, asked: tmp_path / asked.model)


def test_a_study_is_resumed_and_told(
    few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["--work-dir", str(tmp_path / "work"), "--lengths", "80", "160", "--output", str(tmp_path / "probes")]
    assert main(typed) == 0
    told = (tmp_path / "probes.md").read_text()
    line = next(line for line in told.split("Llama")[1].splitlines() if line.startswith("| mqar"))
    assert line.count(" / ") == 1
    assert "–" not in line
    assert "| mqar, n = 2 |" in line
    encoder = next(line for line in told.splitlines() if line.startswith("| mqar"))
    assert encoder.endswith("/ – |"), "an encoder of 128 positions is not asked at 160"
    passkey = next(line for line in told.splitlines() if line.startswith("| passkey"))
    assert passkey.endswith("| – / – |")
    record = json.loads((tmp_path / "probes.json").read_text())
    cells = {(row["model"], *one["key"]): one["cell"] for row in record["rows"] for one in row["cells"]}
    assert sum(key[1] == "induction" for key in cells) == 2 * 2 * 5
    assert cells["llama", "mqar", 80, None]["chance"] == pytest.approx(12.5, abs=2)
    assert (tmp_path / "probes.svg").exists()

    def never(*_: Any) -> None:
        raise AssertionError("everything was asked before")

    monkeypatch.setattr(probe_table, "open_model", never)
    assert main(typed) == 0
    assert (tmp_path / "probes.md").read_text() == told
