"""Several processes that try designs of one study."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import ProcessExitedException, start_processes

from ..conversion.model_loading import quiet_libraries
from ..errors import LongAttentionError
from ..inspect import Candidate
from ..inspect.attention import silent
from .config import SearchConfig
from .folder import TRANSFER
from .study import DesignStudy

Work = Callable[..., None]


@dataclass(frozen=True)
class WorkerJob:
    """What a process of stage 2 starts from."""

    config: SearchConfig
    folder: str
    candidates: tuple[Candidate, ...]
    layers: int
    costs: dict[str, float]
    limit: float
    named: frozenset[int]

    def study(self) -> DesignStudy:
        """The study, made by whoever opens it first."""
        return DesignStudy(Path(self.folder), self.candidates, self.layers, self.costs, self.limit, self.config.seed, self.named)


def try_designs(job: WorkerJob, trials: int) -> None:
    """Work on a study in this process until ``trials`` of them have ended."""
    model = job.config.open_model()
    transferred = job.config.transferred(model, job.candidates, Path(job.folder) / TRANSFER, silent)
    with quiet_libraries():
        job.study().work(job.config.objective_of(model, transferred), trials)


def run_workers(work: Work, arguments: Sequence[tuple[Any, ...]]) -> None:
    """Call ``work(*values)`` in a new process for each of ``arguments``, and wait for all of them.

    ``work`` is a function of a module; each process gets an equal part of this one's threads.

    Raises:
        LongAttentionError: one of them ended early, with its sentence; the others are stopped.
    """
    threads, sentences = max(1, torch.get_num_threads() // len(arguments)), multiprocessing.get_context("spawn").SimpleQueue()
    with _ignoring_interrupts():  # new processes inherit this: Ctrl-C in a terminal reaches them, too, and this one ends them
        workers = start_processes(_worker, (work, arguments, threads, sentences), nprocs=len(arguments), join=False, daemon=True)
    try:
        while not workers.join():
            pass
    except ProcessExitedException as error:
        code = error.exit_code
        ending = f"signal {-code}" if code < 0 else f"exit code {code}"
        sentence = f"A process of the search ended with {ending}; add --resume to continue without its trial."
        raise LongAttentionError(sentence if sentences.empty() else sentences.get()) from error
    finally:
        for process in workers.processes:
            process.terminate()
            process.join()


def _worker(number: int, work: Work, arguments: Sequence[tuple[Any, ...]], threads: int, sentences: Any) -> None:
    torch.set_num_threads(threads)
    try:
        work(*arguments[number])
    except LongAttentionError as error:
        sentences.put(str(error))
        raise SystemExit(1) from None


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which alone may change how signals are handled
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
