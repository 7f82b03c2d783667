"""Stage 2: designs tried one after the other by Optuna (NSGA-II, Deb et al. 2002), for less loss at less cost.

The study is a journal, to which every process of a search appends, so that a search that was stopped resumes, and several processes share
one. A trial is a design: for every layer the number of its candidate.
"""

from __future__ import annotations

import errno
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..diagnostics import Candidate
from ..errors import CheckpointError, LongAttentionError, OptionError, check_extra, in_a_line, needs_extra
from .design import Design
from .objectives import FAILURES

STUDY = "study.journal"
NAME = "design"
ROUNDING = 1e-9
POPULATION = 20
"""Designs in a generation of NSGA-II, at most."""
ERROR = "error"
"""Attribute of a trial that failed: why."""
Objective = Callable[[Design], float]
Progress = Callable[[str], None]


class DesignStudy:
    """The designs tried so far, and those to come.

    Args:
        folder: of the search; the study is its file :data:`STUDY`.
        candidates: for every layer.
        layers: of the model.
        costs: of one layer with each candidate, by its text, in the unit of ``limit``.
        limit: what all layers of a design may cost together; more expensive designs rank after all others.
        seed: of the sampler.
        named: as of :class:`~hf_longattn.search.design.Design`.
    Raises:
        MissingExtraError: Optuna is not installed.
        CheckpointError: the file is not a study.
    """

    def __init__(
        self, folder: Path, candidates: Sequence[Candidate], layers: int, costs: Mapping[str, float], limit: float, seed: int,
        named: frozenset[int] = frozenset(),
    ) -> None:  # fmt: skip
        with needs_extra("search"):
            import optuna
            from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
        self.candidates, self.layers, self.costs, self.limit, self.seed = list(candidates), layers, dict(costs), limit, seed
        self.named = named
        file = str(folder / STUDY)
        try:
            with _quiet():
                lock = JournalFileOpenLock(file)  # which every file system and operating system has
                storage = optuna.storages.JournalStorage(JournalFileBackend(file, lock_obj=lock))
                self.study = optuna.create_study(
                    study_name=NAME, storage=storage, directions=["minimize", "minimize"], load_if_exists=True, sampler=self._sampler()
                )
        except LongAttentionError:
            raise
        except Exception as error:  # a damaged journal makes Optuna raise any type
            raise CheckpointError(
                f"{file!r} is not a study that Optuna can open ({in_a_line(error, 120)}); remove it, or search into another folder."
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
        """Try designs in this process until ``trials`` of them have ended; designs that fail are left out, with their reason."""
        from optuna.trial import TrialState

        parent = multiprocessing.parent_process()
        with _quiet():
            self.study.sampler = self._sampler(len(self.study.get_trials(deepcopy=False)) if parent is None else os.getpid())
            for number in range(trials):
                trial = self.study.ask()
                numbers = range(len(self.candidates))
                design = self._design({f"layer{one}": trial.suggest_categorical(f"layer{one}", numbers) for one in range(self.layers)})
                cost = self.cost(design)
                trial.set_user_attr("beyond", max(0.0, cost - self.limit * (1 + ROUNDING)))
                if progress is not None:
                    progress(f"trial {number + 1} of {trials}: {design}")
                known = {one.names: loss for one, loss in self.tried()}
                loss, why = (known[design.names], "") if design.names in known else _measured(objective, design)
                if parent is not None and not parent.is_alive():  # the search was killed, and its next start tries this design again
                    return
                if why:
                    trial.set_user_attr(ERROR, why)
                    self.study.tell(trial, state=TrialState.FAIL)
                else:
                    self.study.tell(trial, [loss, cost])

    def failed(self) -> dict[str, str]:
        """Why designs could not be measured, by their text."""
        from optuna.trial import TrialState

        with _quiet():
            trials = self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        return {str(self._design(trial.params)): trial.user_attrs[ERROR] for trial in trials if ERROR in trial.user_attrs}

    def tried(self) -> list[tuple[Design, float]]:
        """Every design that was tried, once, with its loss."""
        designs = [(self._design(trial.params), trial.values[0]) for trial in self._complete()]
        return list({design.names: (design, loss) for design, loss in designs}.values())

    @property
    def complete(self) -> int:
        """Number of trials that are complete."""
        return len(self._complete())

    def _complete(self) -> list[Any]:
        from optuna.trial import TrialState

        with _quiet():
            return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def cost(self, design: Design) -> float:
        """Of all layers, in the unit of ``limit``."""
        return sum(self.costs[name] for name in design.names)

    def _as_trial(self, design: Design) -> dict[str, int]:
        names = [str(one) for one in self.candidates]
        return {f"layer{number}": names.index(name) for number, name in enumerate(design.names)}

    def _design(self, parameters: Mapping[str, int]) -> Design:
        return Design(tuple(self.candidates[parameters[f"layer{number}"]] for number in range(self.layers)), self.named)


def _measured(objective: Objective, design: Design) -> tuple[float, str]:
    """The loss of a design, and why it has none."""
    try:
        loss = objective(design)
    except FAILURES as error:
        return math.nan, in_a_line(error)
    return loss, "" if math.isfinite(loss) else f"its loss is {loss}"


def remove_torn_line(folder: Path) -> None:
    """Remove what a full disk or a killed process left of a last line, and of a lock; to be called while no process works on the study."""
    file = folder / STUDY
    file.with_name(f"{file.name}.lock").unlink(missing_ok=True)
    if file.is_file():
        with open(file, "rb+") as journal:
            content = journal.read()
            if b"\n" in content or content.startswith(b"{"):  # anything else is not a study, which Optuna says
                journal.truncate(content.rfind(b"\n") + 1)


Work = Callable[..., None]


def run_workers(work: Work, arguments: Sequence[tuple[Any, ...]]) -> None:
    """Call ``work(*one)`` in a new process for each of ``arguments``, and wait for all of them.

    ``work`` is a function of a module; each process gets an equal part of this one's threads.

    Raises:
        LongAttentionError: one of them ended early, with its sentence; the others are stopped.
    """
    context = multiprocessing.get_context("spawn")
    threads, sentences = max(1, torch.get_num_threads() // len(arguments)), context.SimpleQueue()
    processes = [context.Process(target=_worker, args=(work, one, threads, sentences), daemon=True) for one in arguments]
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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError("The disk of the search is full; free some space, and add --resume to continue.") from error
        raise
    finally:
        optuna.logging.set_verbosity(before)


def check_trials(trials: int, workers: int) -> None:
    """Refuse numbers that make no search, and a missing Optuna, before anything is measured."""
    if trials < 0 or workers < 1:
        raise OptionError(f"--trials is {trials} and --workers {workers}; give --trials 0 or more, and --workers 1 or more.")
    if trials:
        check_extra("search", "optuna")
