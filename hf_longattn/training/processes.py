"""Several processes that train together: when one of them ends or hangs, the others end with a sentence within a minute.

Launchers kill the rest without a word, gloo reports a closed connection from deep inside, and NCCL waits for half an hour.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType

import torch.distributed as dist

from hf_longattn.errors import CheckpointError, LongAttentionError, error_line
from hf_longattn.training.checkpoints import newest_checkpoint

BEAT = 2.0
"""Seconds between two signs of life."""
SILENT = 40.0
"""Seconds without a sign of life after which a process is taken for dead."""
SAVING = 1800.0
"""The same while a process writes a checkpoint, where Python may stand still."""
CLOSED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused", "Socket closed")
"""What gloo says when the other side is gone."""

_heart: Heart | None = None


class LostProcessError(LongAttentionError):
    """Another process of the training has ended or hangs."""


def several() -> bool:
    """Whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def how_to_resume(folder: Path) -> str:
    """What was saved in ``folder``, and how to continue from it."""
    try:
        newest = newest_checkpoint(folder)
    except CheckpointError:
        newest = None
    if newest is None:
        return "no checkpoint had been written (see --save_steps), so run again from the beginning"
    return f"the latest complete checkpoint is {newest}; run again with --resume"


class Heart:
    """A thread that gives signs of life in the store at ``MASTER_ADDR`` and looks for those of the other processes.

    Args:
        lost: called with the number of a process that has ended or hangs, and whether it reported an error.
    """

    def __init__(self, lost: Callable[[int, bool], None], beat: float = BEAT, silent: float = SILENT) -> None:
        self.rank, self.count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=silent))
        self.prefix = f"hf_longattn/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self.lost, self.beat, self.silent = lost, beat, silent
        self.saving, self.stopped, self.talking = False, threading.Event(), threading.Lock()
        self.thread = threading.Thread(target=self._run, name="signs of life", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def stop(self, word: str) -> None:
        """Stop the thread and leave a last word: "done" or "failed"."""
        self.stopped.set()
        self.thread.join(self.silent)
        self._say(word)

    def tell(self, saving: bool) -> None:
        """Tell the others at once that this process starts or has ended to write files: if it hangs, they wait for what it told last."""
        with self.talking:
            self.saving = saving
            self._say("saving" if saving else "saved")

    def _run(self) -> None:
        others = [rank for rank in range(self.count) if rank != self.rank]
        seen = dict.fromkeys(others, ("", time.monotonic()))
        try:
            for number in itertools.count():
                with self.talking:
                    self._say(f"saving {number}" if self.saving else str(number))
                for rank in others:
                    word, now = self._word(rank), time.monotonic()
                    if word != seen[rank][0]:
                        seen[rank] = (word, now)
                    allowed = SAVING if word.startswith("saving") else self.silent
                    if word == "failed" or (word != "done" and now - seen[rank][1] > allowed):
                        self.lost(rank, word == "failed")
                        return
                if self.stopped.wait(self.beat):
                    return
        except (RuntimeError, dist.DistError):
            if not self.stopped.is_set():
                self.lost(0, False)  # the store is in the first process

    def _say(self, word: str) -> None:
        try:
            self.store.set(f"{self.prefix}/{self.rank}", word)
        except (RuntimeError, dist.DistError):
            if not self.stopped.is_set():
                raise

    def _word(self, rank: int) -> str:
        key = f"{self.prefix}/{rank}"
        return self.store.get(key).decode() if self.store.check([key]) else ""


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """End this process with a sentence when another one of the training ends or hangs; one process is not watched."""
    global _heart
    if not several() or "MASTER_ADDR" not in os.environ or not dist.is_initialized():
        yield
        return

    def lost(rank: int, failed: bool) -> None:
        what = "ended with an error" if failed else "has ended or hangs"
        print(error_line(f"process {rank} of the training {what}: {how_to_resume(folder)}"), file=sys.stderr)
        leave()

    _heart = Heart(lost)
    _heart.start()
    word = "failed"
    try:
        yield
        word = "done"
    finally:
        heart, _heart = _heart, None
        heart.stop(word)


@contextmanager
def saving() -> Iterator[None]:
    """While files are written, which may keep every thread of Python waiting, the others are more patient."""
    heart = _heart
    if heart is not None:
        heart.tell(True)
    try:
        yield
    finally:
        if heart is not None:
            heart.tell(False)


@contextmanager
def sentence_if_lost(folder: Path) -> Iterator[None]:
    """Turn a closed connection, and a launcher's signal to end, into a sentence that names what a run can resume from.

    Raises:
        LostProcessError: another process has ended.
    """
    if not several():
        yield
        return

    def ended(number: int, frame: FrameType | None) -> None:
        raise LostProcessError(f"told to end ({signal.Signals(number).name}), as launchers do when a process ends: {how_to_resume(folder)}")

    usual = signal.signal(signal.SIGTERM, ended) if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    except LongAttentionError:
        raise
    except (RuntimeError, OSError) as error:
        if not isinstance(error, dist.DistError) and not any(words in str(error) for words in CLOSED):
            raise
        raise LostProcessError(f"another process of the training has ended: {how_to_resume(folder)}") from error
    finally:
        if usual is not None:
            signal.signal(signal.SIGTERM, usual)


def leave() -> None:
    """End this process at once: taking a process group down whose other processes are gone may hang."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
