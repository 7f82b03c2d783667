"""Stage 2: designs tried one after the other by Optuna (NSGA-II, Deb et al. 2002), for less loss at less cost.

The study is Optuna's journal, so that a search that was stopped resumes. A trial is a design: for every layer the number of its
candidate. Trials are asked for and told: Optuna's own loop (``study.optimize``) counts a trial that Ctrl-C ends as failed, and hides that
the disk is full behind an AssertionError.
"""

from __future__ import annotations

import errno
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, LongAttentionError, OptionError, check_extra, in_a_line, needs_extra
from ..inspect import Candidate
from .design import Design
from .objectives import FAILURES, Progress

STUDY = "study.journal"
NAME = "design"
ROUNDING = 1e-9
POPULATION = 20
"""Designs in a generation of NSGA-II, at most."""
ERROR, EXCESS = "error", "beyond"
"""Attributes of a trial: why it failed; the cost above the limit."""
Objective = Callable[[Design], float]


class DesignStudy:
    """The designs tried so far, and the designs to try next.

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
        self.candidates, self.costs, self.limit, self.seed, self.named = list(candidates), dict(costs), limit, seed, named
        self.parameters = [f"layer{number}" for number in range(layers)]
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

        def excess(trial: Any) -> tuple[float]:
            return (trial.user_attrs.get(EXCESS, 0.0),)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constraints are called experimental
            return optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=self.seed + started, constraints_func=excess)

    def begin(self, seeds: Sequence[Design]) -> None:
        """Queue the designs to try first, if the study is new; else those whose trials were interrupted."""
        import optuna

        with _quiet():
            trials = self.study.get_trials(deepcopy=False)
            if not trials:
                for design in seeds:
                    self.study.enqueue_trial(self._as_trial(design))
            for trial in trials:
                if trial.state == optuna.trial.TrialState.RUNNING:
                    self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                    if len(trial.params) == len(self.parameters):
                        self.study.enqueue_trial(trial.params)

    def work(self, objective: Objective, trials: int, progress: Progress | None = None) -> None:
        """Try designs until ``trials`` of them have ended; designs that fail are left out, with their reason."""
        from optuna.trial import TrialState

        with _quiet():
            self.study.sampler = self._sampler(len(self.study.get_trials(deepcopy=False)))
            for number in range(trials):
                trial = self.study.ask()
                choices = range(len(self.candidates))
                design = self._design({name: trial.suggest_categorical(name, choices) for name in self.parameters})
                cost = self.cost(design)
                trial.set_user_attr(EXCESS, max(0.0, cost - self.limit * (1 + ROUNDING)))
                if progress is not None:
                    progress(f"trial {number + 1} of {trials}: {design}")
                losses = {tried.names: loss for tried, loss in self.tried()}
                loss, why = (losses[design.names], "") if design.names in losses else _measure(objective, design)
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
        """What all layers of a design cost, in the unit of ``limit``."""
        return sum(self.costs[name] for name in design.names)

    def _as_trial(self, design: Design) -> dict[str, int]:
        numbers = {str(candidate): number for number, candidate in enumerate(self.candidates)}
        return {parameter: numbers[name] for parameter, name in zip(self.parameters, design.names, strict=True)}

    def _design(self, numbers: Mapping[str, int]) -> Design:
        return Design(tuple(self.candidates[numbers[parameter]] for parameter in self.parameters), self.named)


def _measure(objective: Objective, design: Design) -> tuple[float, str]:
    """The loss of a design, and why it has none."""
    try:
        loss = objective(design)
    except FAILURES as error:
        return math.nan, in_a_line(error)
    return loss, "" if math.isfinite(loss) else f"its loss is {loss}"


def remove_torn_line(folder: Path) -> None:
    """Remove what a full disk or a killed process left of a last line, and of a lock, while no process works on the study."""
    file = folder / STUDY
    file.with_name(f"{file.name}.lock").unlink(missing_ok=True)
    if file.is_file():
        with open(file, "rb+") as journal:
            content = journal.read()
            if b"\n" in content or content.startswith(b"{"):  # anything else is not a study, which Optuna says
                journal.truncate(content.rfind(b"\n") + 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Turns off Optuna's lines about trials and its warnings about what is experimental; a full disk is a sentence."""
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


def check_trials(trials: int) -> None:
    """Refuse a number below 0, and a missing Optuna, before anything is measured."""
    if trials < 0:
        raise OptionError(f"--trials is {trials}; give --trials 0 or more.")
    if trials:
        check_extra("search", "optuna")
