"""A conversion killed at any moment leaves no destination, or a whole one; the next run cleans up after it."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from hf_longattn.conversion import convert_checkpoint

from ..fresh_processes import run_fresh

KILLS = 50
ARGUMENTS: dict[str, Any] = {"mechanism": "window", "window": 16, "max_length": 256, "verify": False}


def run(source: Path, destination: Path, overwrite: bool, begun: Connection) -> None:
    """A conversion in a separate process, which says when the first byte is written."""
    said: list[bool] = []

    def progress(stage: str, done: int, total: int) -> None:
        if not said:
            said.append(True)
            begun.send(True)

    convert_checkpoint(source, destination, overwrite=overwrite, progress=progress, **ARGUMENTS)


class Runs:
    """Processes that have imported everything already and are killed by number."""

    def __init__(self, source: Path, destination: Path, *, overwrite: bool) -> None:
        self.arguments = (source, destination, overwrite)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["hf_longattn.conversion", __name__])

    def killed_after(self, seconds: float | None) -> float:
        """Start, wait for the first byte and kill so much later; `None` lets it finish. Returns the seconds since the first byte."""
        receiver, sender = self.context.Pipe(duplex=False)
        process = self.context.Process(target=run, args=(*self.arguments, sender))
        process.start()
        assert receiver.poll(300)
        begun = time.perf_counter()
        if seconds is not None:
            time.sleep(seconds)
            process.kill()
        process.join(300)
        assert process.exitcode in ((0,) if seconds is None else (0, -9))
        return time.perf_counter() - begun


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a checkpoint, except the times in its report."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: b"" if name == "conversion_report.json" else content for name, content in files.items()}


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_conversion_killed_anywhere_leaves_a_whole_folder_or_none(overwrite: bool, built: Callable[[str], Path], tmp_path: Path) -> None:
    source, destination, old = built("BertForMaskedLM"), tmp_path / "place" / "long", tmp_path / "old"
    convert_checkpoint(source, old, mechanism="full", max_length=96, verify=False)
    convert_checkpoint(source, destination, **ARGUMENTS)  # there, since the card says where it lies
    before, after = contents(old), contents(destination)
    shutil.rmtree(destination)
    assert before != after
    runs = Runs(source, destination, overwrite=overwrite)
    if overwrite:
        shutil.copytree(old, destination)
    duration = max(runs.killed_after(None) for _ in range(2 if overwrite else 1))
    generator = random.Random(0)
    found = {"absent": 0, "old": 0, "new": 0}
    for number in range(KILLS):
        shutil.rmtree(destination, ignore_errors=True)
        if overwrite:
            shutil.copytree(old, destination)
        runs.killed_after(duration * (number + generator.random()) / KILLS)
        state = contents(destination) if destination.exists() else None
        assert state in ((before, after) if overwrite else (None, after))
        found["absent" if state is None else "new" if state == after else "old"] += 1
    assert found["new"] < KILLS  # most were killed before they were done
    shutil.rmtree(destination, ignore_errors=True)
    runs.killed_after(None)
    assert contents(destination) == after
    assert os.listdir(destination.parent) == ["long"]


def convert_until_killed(source: str, destination: str) -> None:
    def kill(stage: str, done: int, total: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    convert_checkpoint(source, destination, mechanism="full", max_length=128, progress=kill)


def test_conversion_killed_while_writing_is_cleaned_up_by_the_next(built: Callable[[str], Path], tmp_path: Path) -> None:
    destination = tmp_path / "long"
    assert run_fresh(convert_until_killed, built("BertModel"), destination).returncode == -9
    assert [path.name.startswith(".long.partial-") for path in tmp_path.iterdir()] == [True]
    convert_checkpoint(built("BertModel"), destination, mechanism="full", max_length=128, verify=False)
    assert os.listdir(tmp_path) == ["long"]


def test_conversion_asked_to_end_while_writing_leaves_nothing(built: Callable[[str], Path], tmp_path: Path) -> None:
    def end(stage: str, done: int, total: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    options: dict[str, Any] = {"mechanism": "longformer", "window": 16, "max_length": 128}
    try:
        with pytest.raises(SystemExit):
            convert_checkpoint(built("BertModel"), tmp_path / "long", progress=end, **options)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert os.listdir(tmp_path) == []
