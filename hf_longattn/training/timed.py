"""Training by the clock: stop after so many minutes, with the learning rate at zero by then."""

from __future__ import annotations

import time
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Clock:
    """Minutes since the first step, as a share of the time allowed; ``None`` minutes = no limit."""

    def __init__(self, minutes: float | None) -> None:
        self.minutes, self.started, self.before = minutes, None, 0.0  # type: float | None, float | None, float

    def start(self, before: float) -> None:
        """The first step begins; a resumed run has spent ``before`` minutes already."""
        self.started, self.before = time.monotonic(), before

    def elapsed(self) -> float:
        """Minutes spent."""
        return self.before + (0.0 if self.started is None else (time.monotonic() - self.started) / 60)

    def share(self) -> float:
        """Share of the time allowed that is spent."""
        return 0.0 if self.minutes is None else self.elapsed() / self.minutes


class StopInTime(TrainerCallback):
    """Starts the clock with the training, stops the training with the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        spent = [entry["minutes"] for entry in state.log_history if "minutes" in entry]
        self.clock.start(max(spent, default=0.0))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_training_stop |= self.clock.share() >= 1.0


def timed_schedule(optimizer: Optimizer, clock: Clock, num_training_steps: int, warmup_steps: int) -> LambdaLR:
    """Linear warm-up and decay over the steps or over the time, whichever is further on."""
    warmup = max(1, warmup_steps)

    def scale(step: int) -> float:
        done = max(step / max(1, num_training_steps), clock.share())
        return min(1.0, (step + 1) / warmup) * max(0.0, 1.0 - done)

    return LambdaLR(optimizer, scale)
