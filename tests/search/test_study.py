"""Stage 2: trials in one process, in two, and after an interruption."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from hf_longattn.errors import CheckpointError, LongAttentionError, MissingExtraError, OptionError
from hf_longattn.search import search_design
from hf_longattn.search.study import run_workers

CANDIDATES = ["window:window=8", "window:window=16", "full"]
SETTINGS: dict[str, Any] = {"budget": "20s", "length": 128, "candidates": CANDIDATES, "pieces": 1}


def states(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "study.db") as database:
        return [row[0] for row in database.execute("select state from trials order by number")]


def test_trials_start_with_the_designs_of_stage_1_and_choose_by_loss(encoder: Path, text: Path, tmp_path: Path) -> None:
    found = search_design(encoder, text, tmp_path / "study", trials=8, **SETTINGS)
    alone = search_design(encoder, text, tmp_path / "alone", **SETTINGS)
    assert states(tmp_path / "study") == ["COMPLETE"] * 8
    assert 2 <= len(found.tried) <= 8
    assert alone.chosen.design in [one.design for one in found.tried]
    assert found.chosen.loss == min(one.loss for one in found.tried if one.loss is not None)
    assert found.objective == "loss"
    assert "designs tried" in found.reason
    assert "## Tried" in found.to_markdown()
    again = search_design(encoder, text, tmp_path / "again", trials=8, **SETTINGS)
    losses = {one.design.names: one.loss for one in found.tried}
    assert all(losses.get(one.design.names, one.loss) == pytest.approx(one.loss) for one in again.tried)


def test_the_divergence_of_whole_designs(encoder: Path, decoder: Path, text: Path, tmp_path: Path) -> None:
    for source in (encoder, decoder):
        found = search_design(source, text, tmp_path / source.name, trials=4, objective="kl", **SETTINGS)
        full = [one.loss for one in found.tried if set(one.design.names) == {"full"}]
        assert full == pytest.approx([0.0] * len(full), abs=1e-5)
        assert full
        assert found.objective == "kl"


def test_two_processes_share_a_study(encoder: Path, text: Path, tmp_path: Path) -> None:
    found = search_design(encoder, text, tmp_path / "study", trials=6, workers=2, **SETTINGS)
    done = states(tmp_path / "study")
    assert set(done) == {"COMPLETE"}
    assert len(done) == 6
    assert found.chosen.loss is not None


SEARCH = """
import time
from pathlib import Path
import hf_longattn.search.objectives as objectives
from hf_longattn.search import search_design

measure = objectives.HeldOutLoss.__call__
judged = 0
def stops_at_the_third(self, design):
    global judged
    judged += 1
    if judged > 2:
        time.sleep(600)
    return measure(self, design)
objectives.HeldOutLoss.__call__ = stops_at_the_third
search_design({encoder!r}, Path({text!r}), {study!r}, trials=40, **{settings!r})
"""


def test_a_killed_search_resumes(encoder: Path, text: Path, tmp_path: Path, repository: Path) -> None:
    study = tmp_path / "study"
    code = textwrap.dedent(SEARCH).format(encoder=str(encoder), text=str(text), study=str(study), settings=SETTINGS)
    running = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(repository)})
    try:
        late = time.monotonic() + 300
        while time.monotonic() < late and not ((study / "study.db").is_file() and states_or_none(study).count("COMPLETE") >= 2):
            assert running.poll() is None
            time.sleep(0.1)
        with pytest.raises(LongAttentionError, match="Another search is working in"):
            search_design(encoder, text, study, trials=5, resume=True, **SETTINGS)
        while time.monotonic() < late and "RUNNING" not in states(study):
            time.sleep(0.02)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    before = states(study)
    assert "RUNNING" in before
    found = search_design(encoder, text, study, trials=before.count("COMPLETE") + 2, resume=True, **SETTINGS)
    after = states(study)
    assert after.count("COMPLETE") == before.count("COMPLETE") + 2
    assert after.count("FAIL") == before.count("RUNNING")
    assert "RUNNING" not in after
    assert found.chosen.loss is not None
    assert {one.name for one in study.iterdir()} >= {"design.yaml", "report.json", "report.md", "pareto.svg"}


def states_or_none(folder: Path) -> list[str]:
    try:
        return states(folder)
    except sqlite3.OperationalError:  # not made yet
        return []


def test_a_worker_that_dies_is_a_sentence() -> None:
    with pytest.raises(LongAttentionError, match="ended with signal 9; add --resume to continue"):
        run_workers(signal.raise_signal, (signal.SIGKILL,), 2)


def test_optuna_that_is_missing(encoder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'optuna', which is not installed; type pip install '.\[search\]'"):
        search_design(encoder, text, tmp_path / "study", trials=3, **SETTINGS)
    assert not (tmp_path / "study").exists()
    search_design(encoder, text, tmp_path / "study", **SETTINGS)


def test_a_file_that_is_no_study(encoder: Path, text: Path, tmp_path: Path) -> None:
    search_design(encoder, text, tmp_path / "study", **SETTINGS)
    (tmp_path / "study" / "study.db").write_bytes(b"not a database" * 100)
    with pytest.raises(CheckpointError, match=r"is not a study that Optuna can open .*; remove it, or search into another folder"):
        search_design(encoder, text, tmp_path / "study", trials=3, resume=True, **SETTINGS)


def test_a_checkpoint_without_a_head_has_no_loss(encoder: Path, text: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BertModel

    BertModel.from_pretrained(encoder).save_pretrained(tmp_path / "headless")
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "headless")
    with pytest.raises(OptionError, match="is a BertModel, which predicts no tokens"):
        search_design(tmp_path / "headless", text, tmp_path / "study", trials=3, **SETTINGS)
    assert not (tmp_path / "study").exists()  # so that the command can be typed again with --objective kl
    with pytest.raises(OptionError, match="has no head whose predictions could be compared"):
        search_design(tmp_path / "headless", text, tmp_path / "other", score="kl", **SETTINGS)


def test_a_path_of_any_name_is_a_study(encoder: Path, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "with space #1? ü%41"
    search_design(encoder, text, folder, trials=2, **SETTINGS)
    assert (folder / "study.db").is_file()


def test_a_full_disk_is_a_sentence_and_the_search_resumes(
    encoder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, pages = sqlite3.connect, [2]

    def limited(*arguments: Any, **more: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **more)
        connection.execute(f"pragma max_page_count = {pages[0]}")  # at least as many as the file has
        return connection

    monkeypatch.setattr(sqlite3, "connect", limited)
    for allowed in (2, 10**6, 1):
        pages[0] = allowed
        resume = {"resume": (tmp_path / "study").exists(), "trials": {2: 2, 10**6: 2, 1: 60}[allowed]}
        if allowed == 10**6:
            assert search_design(encoder, text, tmp_path / "study", **resume, **SETTINGS).tried
            continue
        with pytest.raises(CheckpointError, match="The disk of the search is full; free some space, and add --resume to continue"):
            search_design(encoder, text, tmp_path / "study", **resume, **SETTINGS)
