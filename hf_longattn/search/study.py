"""Stage 2: designs tried one after the other by Optuna (NSGA-II, Deb et al. 2002), for less loss at less cost.

The study is Optuna's journal, so that a search that was stopped resumes. A trial is a design: for every layer the number of its
candidate. This uses ``study.ask`` and ``study.tell``: ``study.optimize`` counts a trial that Ctrl-C ends as failed, and if the disk is
full, it raises an AssertionError.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, LongAttentionError, in_a_line, needs_extra
from ..inspect import Candidate
from ..inspect.attention import Progress
from .design import Design, DesignCosts
from .objectives import Objective, measured

STUDY = "study.journal"
NAME = "design"
POPULATION = 20
"""Designs in a generation of NSGA-II, at most."""
ERROR, EXCESS = "error", "beyond"
"""Attributes of a trial: why it failed; the cost above the limit."""


class DesignStudy:
    """The designs tried so far, and the designs to try next. One process at a time works on a study.

    Args:
        file: of the study.
        candidates: for every layer.
        costs: of designs; those beyond the budget rank after all others.
        seed: of the sampler.
    Raises:
        MissingExtraError: Optuna is not installed.
        CheckpointError: the file is not a study.
    """

    def __init__(self, file: Path, candidates: Sequence[Candidate], costs: DesignCosts, seed: int) -> None:
        with needs_extra("search"):
            import optuna
            from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
        self.candidates, self.costs, self.seed = list(candidates), costs, seed
        self.parameters = [f"layer{number}" for number in range(costs.layers)]
        _remove_torn_line(file)
        try:
            with _quiet():
                lock = JournalFileOpenLock(str(file))  # which every file system and operating system has
                storage = optuna.storages.JournalStorage(JournalFileBackend(str(file), lock_obj=lock))
                self.study = optuna.create_study(study_name=NAME, storage=storage, directions=["minimize", "minimize"], load_if_exists=True)
        except LongAttentionError:
            raise
        except Exception as error:  # a damaged journal makes Optuna raise any type
            raise CheckpointError(
                f"{str(file)!r} is not a study that Optuna can open ({in_a_line(error, 120)}); remove it, or search into another folder."
            ) from error

    def begin(self, seeds: Sequence[Design]) -> None:
        """Queue the designs to try first, if the study is new; else those whose trials were interrupted."""
        with _quiet():
            if not self._trials():
                for design in seeds:
                    self.study.enqueue_trial(self._as_trial(design))
            for trial in self._trials("RUNNING"):
                self.study.tell(trial.number, state=_state("FAIL"))
                if len(trial.params) == len(self.parameters):
                    self.study.enqueue_trial(trial.params)

    def work(self, objective: Objective, trials: int, progress: Progress) -> None:
        """Try designs until ``trials`` more have ended; designs that fail are left out, with their reason."""
        import optuna

        with _quiet():
            self.study.sampler = optuna.samplers.NSGAIISampler(
                population_size=POPULATION,
                seed=self.seed + len(self._trials()),
                constraints_func=lambda trial: (trial.user_attrs.get(EXCESS, 0.0),),
            )
            choices = range(len(self.candidates))
            for number in range(trials):
                trial = self.study.ask()
                design = self._design({name: trial.suggest_categorical(name, choices) for name in self.parameters})
                trial.set_user_attr(EXCESS, self.costs.excess(design))
                progress(f"trial {number + 1} of {trials}: {design}")
                losses = {tried.names: loss for tried, loss in self.tried()}
                loss, why = (losses[design.names], "") if design.names in losses else measured(objective, design)
                if why:
                    trial.set_user_attr(ERROR, why)
                    self.study.tell(trial, state=_state("FAIL"))
                else:
                    costed = self.costs.costed(design)
                    self.study.tell(trial, [loss, costed.seconds if self.costs.peak else self.costs.of_design(design)])

    def failed(self) -> dict[str, str]:
        """Why designs could not be measured, by their text."""
        return {str(self._design(trial.params)): trial.user_attrs[ERROR] for trial in self._trials("FAIL") if ERROR in trial.user_attrs}

    def tried(self) -> list[tuple[Design, float]]:
        """Every design that was tried, once, with its loss."""
        designs = [(self._design(trial.params), trial.values[0]) for trial in self._trials("COMPLETE")]
        return list({design.names: (design, loss) for design, loss in designs}.values())

    @property
    def complete(self) -> int:
        """Number of trials that are complete."""
        return len(self._trials("COMPLETE"))

    def _trials(self, *states: str) -> list[Any]:
        """The trials in one of these states, or all."""
        return self.study.get_trials(deepcopy=False, states=tuple(map(_state, states)) or None)

    def _as_trial(self, design: Design) -> dict[str, int]:
        numbers = {str(candidate): number for number, candidate in enumerate(self.candidates)}
        return {parameter: numbers[name] for parameter, name in zip(self.parameters, design.names, strict=True)}

    def _design(self, numbers: Mapping[str, int]) -> Design:
        return Design(tuple(self.candidates[numbers[parameter]] for parameter in self.parameters), self.costs.named)


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]


def _remove_torn_line(file: Path) -> None:
    """Remove what a full disk or a killed process left of a last line, and of a lock."""
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
