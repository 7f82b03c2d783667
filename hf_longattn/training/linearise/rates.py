"""Which learning rate a stage takes: short runs with rates around the one that is asked for, each from the same start, and the held-out
loss after each. The search is ``Trainer.hyperparameter_search`` by Optuna, over a grid.

A short run favours higher rates than a long one would: it shows which rates diverge or do nothing, not the last tenth of a nat.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from hf_longattn.errors import OptionError, needs_extra
from hf_longattn.reading import read_json_object
from hf_longattn.staging import write_text
from hf_longattn.training.checkpoints import RATES
from hf_longattn.training.linearise.trainer import LineariseTrainer

STEP = math.sqrt(10)
"""Ratio of neighbouring rates."""


def rates_around(middle: float, count: int) -> list[float]:
    """``count`` rates, evenly spaced in logarithms, with ``middle`` in their middle."""
    return [float(f"{middle * STEP ** (number - (count - 1) / 2):.3g}") for number in range(count)]


class RateTrials(LineariseTrainer):
    """Short runs of a stage, one for each rate, all from the parameters that ``model`` has now.

    Args:
        model: gets its parameters back before every run and after the last one.
        measure: the held-out loss of the model in its present state.
        *args, **kwargs: :class:`LineariseTrainer`'s.
    """

    def __init__(self, model: nn.Module, *args: Any, measure: Callable[[], float], **kwargs: Any) -> None:
        learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.start = {name: value.detach().clone() for name, value in [*learning.items(), *model.named_buffers()]}
        self.trained, self.measure = model, measure
        self.tried: dict[float, float] = {}
        self.lost = False
        super().__init__(None, *args, model_init=self.from_the_start, **kwargs)

    def from_the_start(self) -> nn.Module:
        """The model with the parameters of the start."""
        now = {**dict(self.trained.named_parameters()), **dict(self.trained.named_buffers())}
        with torch.no_grad():
            for name, value in self.start.items():
                now[name].copy_(value)
        self.trained.zero_grad()
        return self.trained

    def diverged(self, what: str) -> None:
        """A rate that is too high loses, without a sentence."""
        self.lost = self.control.should_training_stop = True

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self.lost = False
        return super().train(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The held-out loss; infinite after a divergence."""
        loss = math.inf if self.lost else self.measure()
        self.tried[float(self.args.learning_rate)] = loss if math.isfinite(loss) else math.inf
        return {"eval_loss": self.tried[float(self.args.learning_rate)]}

    def best(self, rates: list[float]) -> dict[float, float]:
        """Try every rate.

        Returns:
            The held-out loss by rate, the same in all processes.

        Raises:
            MissingExtraError: Optuna is not installed.
            OptionError: every rate diverged.
        """
        with quiet_optuna() as optuna:
            grid = optuna.samplers.GridSampler({"learning_rate": rates}, seed=0)
            self.hyperparameter_search(
                hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", rates)},
                compute_objective=lambda metrics: metrics["eval_loss"],
                n_trials=len(rates), direction="minimize", backend="optuna", sampler=grid,
            )  # fmt: skip
        self.from_the_start()
        losses: dict[float, float] = broadcast_object_list([dict(sorted(self.tried.items()))])[0]
        if not any(map(math.isfinite, losses.values())):
            option = "transfer" if self.stage == 1 else "finetune"
            raise OptionError(
                f"stage {self.stage} diverged with every learning rate from {min(rates):g} to {max(rates):g}; lower "
                f"--{option}_learning_rate, around which they lie"
            )
        return losses


def chosen_rate(tried: Mapping[float, float]) -> float:
    """The rate with the lowest held-out loss."""
    return min(tried, key=lambda rate: (tried[rate], rate))


def read_rates(folder: Path, stage: int) -> dict[float, float] | None:
    """What an earlier run, which is resumed, found for a stage."""
    path = folder / RATES
    losses = read_json_object(path).get(f"stage{stage}") if path.is_file() else None
    return {float(rate): math.inf if loss is None else float(loss) for rate, loss in losses.items()} if losses else None


def write_rates(folder: Path, stage: int, tried: Mapping[float, float]) -> None:
    """Keep it for a run that resumes."""
    path = folder / RATES
    values = read_json_object(path) if path.is_file() else {}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({**values, f"stage{stage}": readable(tried)}))


def readable(tried: Mapping[float, float]) -> dict[str, float | None]:
    """As JSON: ``None`` for a rate that diverged."""
    return {f"{rate:g}": loss if math.isfinite(loss) else None for rate, loss in tried.items()}


@contextmanager
def quiet_optuna() -> Iterator[Any]:
    """Optuna without a line for every trial.

    Raises:
        MissingExtraError: it is not installed.
    """
    with needs_extra("search"):
        import optuna
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield optuna
    finally:
        optuna.logging.set_verbosity(before)
