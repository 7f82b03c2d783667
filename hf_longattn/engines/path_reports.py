"""Names of paths, and the callbacks that record which path ran.

``HF_LONGATTN_LOG=paths`` logs every distinct choice once, and :func:`hf_longattn.explain` collects the choices of a model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

from ..names import LOGGER
from .batch import in_graph

Kind = Literal[
    "rows", "packed rows", "packed bands", "documents", "documents under a band", "pairs", "selected", "low-rank", "band", "chunks",
    "tiles", "windows", "chosen blocks", "table of blocks", "linear",
]  # fmt: skip
"""Kinds of calls, chosen by mechanisms and engines. Each has its own list of paths in :data:`hf_longattn.engines.dispatch.PATHS`."""
PathName = Literal[
    "packed", "stacked", "split", "masked", "rolled",
    "dense", "dense-masked", "sparse", "selected", "low-rank", "tiles", "blockwise", "windows", "cpu-band",
    "cpu-distances", "cpu-gathered", "cpu-blocks", "plain-gathered", "flash", "flex", "flex-gathered", "flex-blocks",
    "linear-fla", "linear-chunks",
]  # fmt: skip
"""Algorithms or kernels that run a call. The first five are layouts of a batch, see :mod:`.sequences`."""
GPU_RECORD: dict[str, str] = {
    "flex-blocks": "chosen blocks are correct on an H100, but were never timed; fixed blocks never ran on a GPU",
    "linear-fla": "correct on an H100, never timed",
    "flex-gathered": "timed on an H100 before its block lists were rewritten",
}
"""CUDA path -> what was not yet verified on a GPU: results or times (docs/results/gpu.md)."""
LOG_VARIABLE = "HF_LONGATTN_LOG"
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class PathChoice:
    """The path that ran, and ``(path, reason)`` for each path of higher priority that did not."""

    path: str
    refused: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self.path + "".join(f"; no {name}: {reason}" for name, reason in self.refused)


Observer = Callable[[Any, PathChoice], None]
"""``observer(mechanism, choice)``."""
OBSERVERS: list[Observer] = []
"""All observers, of every thread. While it is empty, choices are not reported, which saves time."""
_process_observers: list[Observer] = []
_context_observers: ContextVar[tuple[Observer, ...]] = ContextVar("observers", default=())
_running: ContextVar[Any] = ContextVar("running", default=None)
_reports: ContextVar[int] = ContextVar("reports", default=0)
"""Number of choices that this thread has reported."""


def notify(choice: PathChoice) -> None:
    """Call the process's and this thread's observers with the innermost running mechanism and the path that ran."""
    _reports.set(_reports.get() + 1)
    for observer in (*_process_observers, *_context_observers.get()):
        observer(_running.get(), choice)


@contextlib.contextmanager
def running(mechanism: Any) -> Iterator[None]:
    """Context manager: paths chosen in this thread are reported for ``mechanism``."""
    before = _running.set(mechanism)
    try:
        yield
    finally:
        _running.reset(before)


def reporting(mechanism: Any, run: Callable[..., Result]) -> Callable[..., Result]:
    """Wrap ``run`` so that, if it reports no path, the name of the mechanism's engine is reported."""

    def reported(*arguments: Any) -> Result:
        before, out = _reports.get(), run(*arguments)
        if _reports.get() == before:
            report(mechanism.engine.replace("_", "-"), ())
        return out

    return reported


@contextlib.contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Context manager: call ``observer(mechanism, choice)`` whenever a path is chosen in this thread."""
    OBSERVERS.append(observer)
    before = _context_observers.set((*_context_observers.get(), observer))
    try:
        yield
    finally:
        _context_observers.reset(before)
        OBSERVERS.remove(observer)


def report(path: str, refused: Sequence[tuple[str, str]]) -> None:
    """Report a path to the observers, except in a graph. Callers check :data:`OBSERVERS` first."""
    if not in_graph():
        notify(PathChoice(path, tuple(refused)))


def log_paths() -> None:
    """Log every distinct choice of a path once, as ``HF_LONGATTN_LOG=paths`` does."""
    from transformers.utils import logging as transformers_logging  # its handlers print the log; imported late to save time

    logger, logged = transformers_logging.get_logger(LOGGER), set[str]()

    def log(mechanism: Any, choice: PathChoice) -> None:
        line = f"{getattr(mechanism, 'name', 'attention')}: {choice}"
        if line not in logged:
            logged.add(line)
            logger.info(line)

    logger.setLevel(logging.INFO)
    OBSERVERS.append(log)
    _process_observers.append(log)


if "paths" in os.environ.get(LOG_VARIABLE, "").split(","):
    log_paths()
