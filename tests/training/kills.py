"""Trainings that end in the middle of a save, at a point that a test chooses; processes that a test starts import this
module first."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch
import torch
from transformers import Trainer, TrainerState

from hf_longattn.cli.train import train
from hf_longattn.data.sources import DataError

POINTS = ("half model", "no optimizer", "half optimizer", "no state", "half state", "half deleted")
"""In the order in which a save reaches them: the last one is the deletion of an older checkpoint."""


def kill() -> None:
    """kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def cut(path: Path) -> None:
    """Leave half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class Ending:
    """Within the context the process ends at ``point`` of the save that is number ``count`` of those that reach it."""

    def __init__(self, point: str, count: int = 1, end: Callable[[], None] = kill) -> None:
        self.point, self.count, self.end = point, count, end
        self.patches: list[Any] = []

    def __enter__(self) -> None:
        serialize, save, to_json, remove = (
            safetensors.torch.serialize_file,
            torch.save,
            TrainerState.save_to_json,
            shutil.rmtree,
        )

        def model(tensors: Any, path: Any, *args: Any, **kwargs: Any) -> None:
            serialize(tensors, path, *args, **kwargs)
            self.reached("half model", lambda: cut(Path(path)))

        def optimizer(values: Any, path: Any, *args: Any, **kwargs: Any) -> None:
            ours = str(path).endswith("optimizer.pt")
            if ours:
                self.reached("no optimizer")
            save(values, path, *args, **kwargs)
            if ours:
                self.reached("half optimizer", lambda: cut(Path(path)))

        def state(values: Any, path: Any) -> None:
            self.reached("no state")
            to_json(values, path)
            self.reached("half state", lambda: cut(Path(path)))

        def deleted(path: Any, *args: Any, **kwargs: Any) -> None:
            if "checkpoint-" in str(path):
                self.reached("half deleted", lambda: Path(path, "model.safetensors").unlink())
            remove(path, *args, **kwargs)

        self.patches = [
            mock.patch.object(safetensors.torch, "serialize_file", model),
            mock.patch.object(torch, "save", optimizer),
            mock.patch.object(TrainerState, "save_to_json", state),
            mock.patch.object(shutil, "rmtree", deleted),
        ]
        for patch in self.patches:
            patch.start()

    def __exit__(self, *_: object) -> None:
        for patch in self.patches:
            patch.stop()

    def reached(self, point: str, leave: Callable[[], None] = lambda: None) -> None:
        """End here, if this is the point."""
        if point == self.point:
            self.count -= 1
            if not self.count:
                leave()
                self.end()


def run(task: str, arguments: list[str], point: str = "", count: int = 1) -> None:
    """`longattn train TASK` in a process that a test started; its exit code is the command's."""
    torch.set_num_threads(1)
    with Ending(point, count):
        code = train(task, arguments)
    os._exit(code)


def doom(how: str) -> None:
    """Let this process end in its third training step: by "kill" (-9) or "raise" (bad data)."""
    training_step, steps = Trainer.training_step, []

    def doomed(*args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            if how == "raise":
                raise DataError("row 7 of train.jsonl cannot be read")
            os.kill(os.getpid(), signal.SIGKILL)
        return training_step(*args, **kwargs)

    Trainer.training_step = doomed  # type: ignore[method-assign]


def run_rank(task: str, arguments: list[str], place: tuple[int, int, int], said: str, how: str = "") -> None:
    """As :func:`run`, as one of several processes, which ends as :func:`doom` says.

    Args:
        place: its number, how many there are, and the port at which they meet.
        said: the file that gets what it prints.
    """
    rank, ranks, port = map(str, place)
    os.environ |= {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ["ACCELERATE_USE_CPU"] = "true"
    file = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if how:
        doom(how)
    run(task, arguments)
