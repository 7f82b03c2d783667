"""Stage 2: trials, also after an interruption."""

from __future__ import annotations

import errno
import multiprocessing
import os
import sys
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from hf_longattn.errors import CheckpointError, LongAttentionError, MissingExtraError, OptionError
from hf_longattn.search import objectives, search_design
from hf_longattn.search.design import Design
from tests.ranks import PRELOADED

CANDIDATES = ["window:window=8", "window:window=16", "full"]
SETTINGS: dict[str, Any] = {"budget": "20s", "length": 128, "candidates": CANDIDATES, "pieces": 1}


def states(folder: Path) -> list[str]:
    """Of all trials so far; none before there is a study."""
    optuna = pytest.importorskip("optuna")
    file = str(folder / "study.journal")
    if not Path(file).is_file():
        return []
    journal = optuna.storages.journal.JournalFileBackend(file, lock_obj=optuna.storages.journal.JournalFileOpenLock(file))
    storage = optuna.storages.JournalStorage(journal)
    return [trial.state.name for study in storage.get_all_studies() for trial in storage.get_all_trials(study._study_id)]


@pytest.mark.thorough
def test_trials_start_with_the_designs_of_stage_1_and_choose_by_loss(encoder: Path, text: Path, tmp_path: Path) -> None:
    result = search_design(encoder, text, tmp_path / "study", trials=5, **SETTINGS)
    alone = search_design(encoder, text, tmp_path / "alone", **SETTINGS)
    assert states(tmp_path / "study") == ["COMPLETE"] * 5
    assert 2 <= len(result.tried) <= 5
    assert alone.chosen.design in [costed.design for costed in result.tried]
    assert result.chosen.loss == min(costed.loss for costed in result.tried if costed.loss is not None)
    assert result.objective == "loss"
    assert "designs tried" in result.reason
    assert "## Tried" in result.to_markdown()
    again = search_design(encoder, text, tmp_path / "again", trials=3, **SETTINGS)
    losses = {costed.design.names: costed.loss for costed in result.tried}
    assert all(losses.get(costed.design.names, costed.loss) == pytest.approx(costed.loss) for costed in again.tried)


@pytest.mark.thorough
def test_the_divergence_of_whole_designs(encoder: Path, decoder: Path, text: Path, tmp_path: Path) -> None:
    for source in (encoder, decoder):
        length = 64 if source is encoder else 128  # beyond which full attention on tiled positions is left out
        result = search_design(source, text, tmp_path / source.name, trials=4, objective="kl", **{**SETTINGS, "length": length})
        full = [costed.loss for costed in result.tried if set(costed.design.names) == {"full"}]
        assert full == pytest.approx([0.0] * len(full), abs=1e-5)
        assert full
        assert result.objective == "kl"


@pytest.fixture
def processes() -> ForkServerContext:
    """Processes that are forked from a server, which has imported what they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def search_that_stops_at_its_third_design(source: str, text: str, folder: str) -> None:
    """What the process runs that is killed."""
    measure, judged = objectives.HeldOutLoss.__call__, []

    def stops(self: objectives.HeldOutLoss, design: Design) -> float:
        judged.append(design)
        if len(judged) > 2:
            time.sleep(600)
        return measure(self, design)

    objectives.HeldOutLoss.__call__ = stops  # type: ignore[method-assign]
    search_design(source, Path(text), folder, trials=40, **SETTINGS)


def test_a_killed_search_resumes(encoder: Path, text: Path, tmp_path: Path, processes: ForkServerContext) -> None:
    study = tmp_path / "study"
    running = processes.Process(target=search_that_stops_at_its_third_design, args=(str(encoder), str(text), str(study)))
    running.start()
    try:
        late = time.monotonic() + 300
        while time.monotonic() < late and states(study).count("COMPLETE") < 2:
            assert running.is_alive()
            time.sleep(0.1)
        with pytest.raises(LongAttentionError, match="Another search is working in"):
            search_design(encoder, text, study, trials=5, resume=True, **SETTINGS)
        while time.monotonic() < late and "RUNNING" not in states(study):
            time.sleep(0.02)
    finally:
        running.kill()
        running.join()
    before = states(study)
    assert "RUNNING" in before
    result = search_design(encoder, text, study, trials=before.count("COMPLETE") + 2, resume=True, **SETTINGS)
    after = states(study)
    assert after.count("COMPLETE") == before.count("COMPLETE") + 2
    assert after.count("FAIL") == before.count("RUNNING")
    assert "RUNNING" not in after
    assert result.chosen.loss is not None
    assert {path.name for path in study.iterdir()} >= {"design.yaml", "report.json", "report.md"}


@pytest.mark.thorough
def test_optuna_that_is_missing(encoder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"the package 'optuna', which is not installed; type pip install 'hf-longattn\[search\]'"):
        search_design(encoder, text, tmp_path / "study", trials=3, **SETTINGS)
    assert not (tmp_path / "study").exists()
    search_design(encoder, text, tmp_path / "study", **SETTINGS)


def test_a_file_that_is_no_study(encoder: Path, text: Path, tmp_path: Path) -> None:
    search_design(encoder, text, tmp_path / "study", **SETTINGS)
    (tmp_path / "study" / "study.journal").write_bytes(b"not a study" * 100)
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


@pytest.mark.thorough
def test_a_path_of_any_name_is_a_study(encoder: Path, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "with space #1? ü%41"
    search_design(encoder, text, folder, trials=2, **SETTINGS)
    assert states(folder) == ["COMPLETE"] * 2


def test_a_full_disk_is_a_sentence_and_the_search_resumes(
    encoder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = pytest.importorskip("optuna").storages.journal.JournalFileBackend
    append, space = journal.append_logs, [0]

    def limited(self: Any, logs: list[dict[str, Any]]) -> None:
        space[0] -= 1
        if space[0] < 0:
            with open(self._file_path, "ab") as file:  # as much of the line as the disk takes
                file.write(b'{"op_code":')
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file_path)
        append(self, logs)

    monkeypatch.setattr(journal, "append_logs", limited)
    for allowed, trials in ((0, 2), (9, 2), (10**6, 4), (3, 60)):
        space[0] = allowed
        settings = {"resume": (tmp_path / "study").exists(), "trials": trials, **SETTINGS}
        if allowed == 10**6:
            assert search_design(encoder, text, tmp_path / "study", **settings).tried
            assert states(tmp_path / "study").count("COMPLETE") == 4
            continue
        with pytest.raises(CheckpointError, match="The disk of the search is full; free some space, and add --resume to continue"):
            search_design(encoder, text, tmp_path / "study", **settings)


def test_a_design_that_fails_is_left_out_and_said(encoder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = objectives.HeldOutLoss.__call__

    def fails(self: objectives.HeldOutLoss, design: Design) -> float:
        if set(design.names) == {"window:window=8"}:
            raise RuntimeError("a kernel has no such size")
        return measure(self, design)

    monkeypatch.setattr(objectives.HeldOutLoss, "__call__", fails)
    result = search_design(encoder, text, tmp_path / "study", trials=6, **SETTINGS)
    assert "FAIL" in states(tmp_path / "study")
    assert len(result.tried) >= 2
    assert any("window:window=8 in every layer could not be tried: a kernel has no such size" in note for note in result.notes)


def test_a_candidate_that_fails_is_left_out_and_said(decoder: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = objectives.Divergence.__call__

    def fails(self: objectives.Divergence, design: Design) -> float:
        if "window:window=8" in design.names:
            raise RuntimeError("a kernel has no such size")
        return measure(self, design)

    monkeypatch.setattr(objectives.Divergence, "__call__", fails)
    settings = {**SETTINGS, "candidates": ["window:window=8", "window:window=16"]}
    result = search_design(decoder, text, score="kl", **settings)
    assert set(result.chosen.design.names) == {"window:window=16"}
    assert "a kernel has no such size" in result.reasons["window:window=8"]
    with pytest.raises(OptionError, match=r"No candidate could be measured .*a kernel has no such size"):
        search_design(decoder, text, score="kl", **{**SETTINGS, "candidates": ["window:window=8"]})
