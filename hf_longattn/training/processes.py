"""Several processes that train together: when one of them ends or hangs, the others end with a sentence within a minute.

Launchers kill the others without a word, gloo reports a closed connection from deep inside, and NCCL waits for half an hour.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch.distributed as dist

from hf_longattn.errors import CheckpointError, LongAttentionError, error_line
from hf_longattn.training.checkpoints import finished_part, newest_checkpoint, stage_1_is_complete, stage_checkpoints

BEAT = 2.0
"""Seconds between two heartbeats."""
SILENT = 40.0
"""Seconds without a heartbeat after which a process is taken for dead."""
SAVING = 1800.0
"""The limit while a process writes a checkpoint, when Python may stand still."""
CLOSED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused", "Socket closed")
"""What gloo says when the other side is gone."""

_heartbeat: Heartbeat | None = None


class LostProcessError(LongAttentionError):
    """Another process of the training has ended or hangs."""


def is_distributed() -> bool:
    """Whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def how_to_resume(folder: Path) -> str:
    """What was saved in ``folder``, and how to continue from it."""
    stages = (2,) if stage_1_is_complete(folder) else (2, 1)
    for place in (folder, *(stage_checkpoints(folder, stage) for stage in stages)):
        with suppress(CheckpointError):
            if (newest := newest_checkpoint(place)) is not None:
                return f"the latest complete checkpoint is {newest}; run again with --resume"
    if (part := finished_part(folder)) is not None:
        return f"{part}; run again with --resume"
    return "no checkpoint had been written, so run again from the beginning, with --overwrite"


class Heartbeat:
    """A thread that writes heartbeats into the store at ``MASTER_ADDR`` and reads those of the other processes.

    Args:
        lost: called with the number of a process that has ended or hangs, and whether it reported an error.
    """

    def __init__(self, lost: Callable[[int, bool], None]) -> None:
        self.rank, self.count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=SILENT))
        self.prefix = f"hf_longattn/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self.lost, self.is_saving = lost, False
        self.stopped, self.writing = threading.Event(), threading.Lock()
        self.thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.thread.start()

    def stop(self, word: str) -> None:
        """Stop the thread and leave a last word: "done" or "failed"."""
        self.stopped.set()
        self.thread.join(SILENT)
        self._write(word)

    def announce(self, is_saving: bool) -> None:
        """Tell the others at once that this process starts to write files, or has written them: if it hangs, they wait accordingly."""
        with self.writing:
            self.is_saving = is_saving
            self._write("saving" if is_saving else "saved")

    def _run(self) -> None:
        other_ranks = [rank for rank in range(self.count) if rank != self.rank]
        seen = dict.fromkeys(other_ranks, ("", time.monotonic()))
        try:
            for number in itertools.count():
                with self.writing:
                    self._write(f"saving {number}" if self.is_saving else str(number))
                for rank in other_ranks:
                    word, now = self._read(rank), time.monotonic()
                    if word != seen[rank][0]:
                        seen[rank] = (word, now)
                    allowed = SAVING if word.startswith("saving") else SILENT
                    if word == "failed" or (word != "done" and now - seen[rank][1] > allowed):
                        self.lost(rank, word == "failed")
                        return
                if self.stopped.wait(BEAT):
                    return
        except (RuntimeError, dist.DistError):
            if not self.stopped.is_set():
                self.lost(0, False)  # the store is in the first process

    def _write(self, word: str) -> None:
        try:
            self.store.set(f"{self.prefix}/{self.rank}", word)
        except (RuntimeError, dist.DistError):
            if not self.stopped.is_set():
                raise

    def _read(self, rank: int) -> str:
        key = f"{self.prefix}/{rank}"
        return self.store.get(key).decode() if self.store.check([key]) else ""


@contextmanager
def watch_processes(folder: Path) -> Iterator[None]:
    """End this process with a sentence when another one of the training ends or hangs; one process is not watched."""
    global _heartbeat
    if not is_distributed() or "MASTER_ADDR" not in os.environ or not dist.is_initialized():
        yield
        return

    def lost(rank: int, failed: bool) -> None:
        what = "ended with an error" if failed else "has ended or hangs"
        print(error_line(f"process {rank} of the training {what}: {how_to_resume(folder)}"), file=sys.stderr)
        hard_exit()

    _heartbeat = Heartbeat(lost)
    word = "failed"
    try:
        yield
        word = "done"
    finally:
        heartbeat, _heartbeat = _heartbeat, None
        heartbeat.stop(word)


@contextmanager
def saving() -> Iterator[None]:
    """While files are written, which may keep every thread of Python waiting, the others are more patient."""
    heartbeat = _heartbeat
    if heartbeat is not None:
        heartbeat.announce(True)
    try:
        yield
    finally:
        if heartbeat is not None:
            heartbeat.announce(False)


@contextmanager
def sentence_if_lost(folder: Path) -> Iterator[None]:
    """Turn a closed connection, and a launcher's signal to end, into a sentence that names what a run can resume from.

    Raises:
        LostProcessError: another process has ended.
    """
    if not is_distributed():
        yield
        return

    def ended(number: int, frame: FrameType | None) -> None:
        raise LostProcessError(
            f"received {signal.Signals(number).name}, which launchers send when another process ends: {how_to_resume(folder)}"
        )

    earlier_handler = signal.signal(signal.SIGTERM, ended) if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    except LongAttentionError:
        raise
    except (RuntimeError, OSError) as error:
        if not isinstance(error, dist.DistError) and not any(words in str(error) for words in CLOSED):
            raise
        raise LostProcessError(f"another process of the training has ended: {how_to_resume(folder)}") from error
    finally:
        if earlier_handler is not None:
            signal.signal(signal.SIGTERM, earlier_handler)


def hard_exit(code: int = 1) -> NoReturn:
    """End this process at once: taking a process group down whose other processes are gone may hang."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
