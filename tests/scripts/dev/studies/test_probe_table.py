"""The table of probes: asked once, resumed, and written with what could not be asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.dev.studies import probe_table
from scripts.dev.studies.probe_table import Asked, main
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
    monkeypatch.setattr(probe_table, "BY_LENGTH", {"encoder": {"mqar": 3, "induction": 1}})
    assert main(typed) == 0
    told = (tmp_path / "probes.md").read_text()
    encoder, llama = told.split("**Llama")
    line = next(line for line in encoder.splitlines() if line.startswith("| mqar"))
    assert re.match(r"\| mqar \(chance 1[234]\) \| original \|", line)
    assert " ± " in line
    assert line.endswith(" – |"), "an encoder of 128 positions is not asked at 160"
    assert "| texts of mqar |  | 3 |  |" in encoder
    line = next(line for line in llama.splitlines() if line.startswith("| mqar"))
    assert re.match(r"\| mqar \| 1[234] \| 4 \|", line), "two texts at two lengths"
    assert "| passkey" not in told, "no text fits"
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


def test_more_texts_join_those_that_were_asked(few: None, tmp_path: Path) -> None:
    typed = ["--work-dir", str(tmp_path / "work"), "--lengths", "80", "--tasks", "mqar", "--models", "llama"]
    typed += ["--output", str(tmp_path / "probes")]

    def scores(*more: str) -> list[float]:
        assert main([*typed, *more]) == 0
        (cell,) = json.loads((tmp_path / "probes.json").read_text())["rows"][0]["cells"]
        assert cell["cell"]["samples"] == len(cell["cell"]["scores"])
        return list(cell["cell"]["scores"])

    two = scores()
    four = scores("--samples", "2")
    assert (len(two), len(four)) == (2, 4)
    assert four[:2] == two
    (tmp_path / "work" / "probes.json").unlink()
    assert scores("--samples", "2") == four, "asked at once, they are the same texts"
    assert scores() == four, "none is thrown away"
