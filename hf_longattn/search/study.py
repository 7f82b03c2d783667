"""Stage 2: designs tried one after the other by Optuna (NSGA-II, Deb et al. 2002), for less loss at less cost.

The study is a SQLite file, so that a search that was stopped resumes, and several processes share one. A trial is a design: for every layer
the number of its candidate.
"""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..diagnostics import Candidate
from ..errors import CheckpointError, LongAttentionError, OptionError, in_a_line, needs_extra
from .design import Design

STUDY, ASKING = "study.db", ".asking"
NAME = "design"
ROUNDING = 1e-9
FULL_DISK = "database or disk is full"
"""SQLite's words."""
POPULATION = 20
"""Designs in a generation of NSGA-II, at most."""
PATIENCE = 60
"""Seconds that a process waits while another writes to the study."""
Objective = Callable[[Design], float]
Progress = Callable[[str], None]


class DesignStudy:
    """The designs tried so far, and those to come.

    Args:
        folder: of the search; the study is its file ``study.db``.
        candidates: for every layer.
        layers: of the model.
        costs: of one layer with each candidate, by its text, in the unit of ``limit``.
        limit: what all layers of a design may cost together; dearer designs rank after all others.
        seed: of the sampler.
        named: as of :class:`~hf_longattn.search.design.Design`.
    Raises:
        MissingExtraError: Optuna is not installed.
        CheckpointError: the file is no study.
    """

    def __init__(
        self, folder: Path, candidates: Sequence[Candidate], layers: int, costs: Mapping[str, float], limit: float, seed: int,
        named: frozenset[int] = frozenset(),
    ) -> None:  # fmt: skip
        with needs_extra("search"):
            import optuna
        self.candidates, self.layers, self.costs, self.limit, self.seed = list(candidates), layers, dict(costs), limit, seed
        self.named = named
        file, self.asking = folder / STUDY, folder / ASKING
        fresh = not file.exists()
        try:
            with _quiet():
                # by a connection, since a URL cannot hold every path
                connect = partial(sqlite3.connect, str(file), timeout=PATIENCE, check_same_thread=False)
                storage = optuna.storages.RDBStorage(f"sqlite:///{STUDY}", engine_kwargs={"creator": connect})
                self.study = optuna.create_study(
                    study_name=NAME, storage=storage, directions=["minimize", "minimize"], load_if_exists=True, sampler=self._sampler()
                )
        except LongAttentionError:
            if fresh:  # half of its tables, which Optuna would take for all
                file.unlink(missing_ok=True)
            raise
        except Exception as error:  # SQLAlchemy, sqlite3 and Optuna each raise their own
            raise CheckpointError(
                f"{str(file)!r} is not a study that Optuna can open ({in_a_line(error, 120)}); remove it, or search into another folder."
            ) from error

    def _sampler(self, started: int = 0) -> Any:
        import optuna

        def beyond(trial: Any) -> tuple[float]:
            return (trial.user_attrs.get("beyond", 0.0),)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constraints are called experimental
            return optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=self.seed + started, constraints_func=beyond)

    def begin(self, seeds: Sequence[Design]) -> None:
        """Queue designs to be tried first, if the study is new; else those whose trials were interrupted.

        To be called by one process, while no other works on the study.
        """
        import optuna

        with _quiet():
            trials = self.study.get_trials(deepcopy=False)
            if not trials:
                for design in seeds:
                    self.study.enqueue_trial(self._as_trial(design))
            for trial in trials:
                if trial.state == optuna.trial.TrialState.RUNNING:
                    self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                    if len(trial.params) == self.layers:
                        self.study.enqueue_trial(trial.params)

    def work(self, objective: Objective, trials: int, progress: Progress | None = None) -> None:
        """Try designs until ``trials`` are complete or being tried, in this process and in all others together."""
        import optuna

        parent = os.getppid()
        with _quiet():
            others = multiprocessing.parent_process() is not None
            self.study.sampler = self._sampler(os.getpid() if others else len(self.study.get_trials(deepcopy=False)))
            while os.getppid() == parent:
                with self._turn():
                    states = [trial.state for trial in self.study.get_trials(deepcopy=False)]
                    done = sum(state in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.RUNNING) for state in states)
                    if done >= trials:
                        return
                    trial = self.study.ask()
                numbers = range(len(self.candidates))
                design = self._design({f"layer{one}": trial.suggest_categorical(f"layer{one}", numbers) for one in range(self.layers)})
                cost = self.cost(design)
                trial.set_user_attr("beyond", max(0.0, cost - self.limit * (1 + ROUNDING)))
                known = {one.names: loss for one, loss in self.tried()}
                if progress is not None:
                    progress(f"trial {trial.number + 1} of {trials}: {design}")
                loss = known[design.names] if design.names in known else objective(design)
                if os.getppid() != parent:  # the search was killed, and its next start tries this design again
                    return
                if loss != loss or loss == float("inf"):
                    self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
                    raise LongAttentionError(f"The loss of {design} is {loss}, so designs cannot be compared; leave its mechanism out.")
                self.study.tell(trial, [loss, cost])

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One process at a time: on SQLite, Optuna can give a queued trial to two that ask together."""
        with open(self.asking, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def tried(self) -> list[tuple[Design, float]]:
        """Every design that was tried, once, with its loss."""
        import optuna

        with _quiet():
            complete = self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        found = {design.names: (design, trial.values[0]) for trial in complete for design in [self._design(trial.params)]}
        return list(found.values())

    @property
    def complete(self) -> int:
        """Trials that are done."""
        import optuna

        return len(self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))

    def cost(self, design: Design) -> float:
        """Of all layers, in the unit of ``limit``."""
        return sum(self.costs[name] for name in design.names)

    def _as_trial(self, design: Design) -> dict[str, int]:
        names = [str(one) for one in self.candidates]
        return {f"layer{number}": names.index(name) for number, name in enumerate(design.names)}

    def _design(self, parameters: Mapping[str, int]) -> Design:
        return Design(tuple(self.candidates[parameters[f"layer{number}"]] for number in range(self.layers)), self.named)


Work = Callable[..., None]


def run_workers(work: Work, arguments: tuple[Any, ...], count: int) -> None:
    """Call ``work(*arguments)`` in ``count`` new processes, and wait for all of them.

    ``work`` is a function of a module; each process gets an equal part of this one's threads.

    Raises:
        LongAttentionError: one of them ended early, with its sentence; the others are stopped.
    """
    context = multiprocessing.get_context("spawn")
    threads, sentences = max(1, torch.get_num_threads() // count), context.SimpleQueue()
    processes = [context.Process(target=_worker, args=(work, arguments, threads, sentences), daemon=True) for _ in range(count)]
    try:
        with _ignoring_interrupts():  # which new processes inherit: Ctrl-C in a terminal reaches them, too
            for process in processes:
                process.start()
        waiting = list(processes)
        while waiting:
            multiprocessing.connection.wait([process.sentinel for process in waiting])
            for process in [one for one in waiting if one.exitcode is not None]:
                waiting.remove(process)
                if process.exitcode:
                    said = sentences.get() if not sentences.empty() else ""
                    raise LongAttentionError(
                        said
                        or f"A process of the search ended with {_ending(process.exitcode)}; add --resume to continue without its trial."
                    )
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        for process in processes:
            if process.pid is not None:
                process.join()


def _worker(work: Work, arguments: tuple[Any, ...], threads: int, sentences: Any) -> None:
    torch.set_num_threads(threads)
    try:
        work(*arguments)
    except LongAttentionError as error:
        sentences.put(str(error))
        raise SystemExit(1) from None


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # no other may change how signals are handled
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _ending(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's own lines about trials and its warnings about what is experimental; a full disk is a sentence."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:  # Optuna's error, SQLAlchemy's, SQLite's
            if FULL_DISK in str(cause):
                raise CheckpointError("The disk of the search is full; free some space, and add --resume to continue.") from error
            cause = cause.__cause__ or cause.__context__
        raise
    finally:
        optuna.logging.set_verbosity(before)


def check_trials(trials: int, workers: int) -> None:
    """Refuse numbers that make no search, and a missing Optuna, before anything is measured."""
    if trials < 0 or workers < 1:
        raise OptionError(f"{trials} trials in {workers} processes were asked for; give --trials 0 or more, and --workers 1 or more.")
    if trials:
        with needs_extra("search"):
            import optuna  # noqa: F401
