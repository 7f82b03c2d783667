"""Training by the clock: stop after so many minutes, with the learning rate at zero by then."""

from __future__ import annotations

import time
from typing import Any

import torch
from accelerate.utils import broadcast
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Clock:
    """Minutes since the first step, as a share of the time allowed; ``None`` minutes = no limit.

    All processes go by the first one's clock, as it was at the last :meth:`tick`: they stop after the same step, and have the same
    learning rate.
    """

    def __init__(self, minutes: float | None) -> None:
        self.minutes, self.started, self.before, self.agreed = minutes, None, 0.0, 0.0  # type: float | None, float | None, float, float

    def start(self, before: float) -> None:
        """The first step begins; a resumed run has spent ``before`` minutes already."""
        self.started, self.before, self.agreed = time.monotonic(), before, before

    def tick(self, device: torch.device) -> None:
        """Every process takes over the first one's time; called by all of them in every step."""
        if self.minutes is not None:
            self.agreed = float(broadcast(torch.tensor([self.elapsed()], device=device))[0])

    def elapsed(self) -> float:
        """Minutes spent."""
        return self.before + (0.0 if self.started is None else (time.monotonic() - self.started) / 60)

    def share(self) -> float:
        """Share of the time allowed that was spent at the last tick, the same in all processes."""
        return 0.0 if self.minutes is None else self.agreed / self.minutes


class StopInTime(TrainerCallback):
    """Starts the clock with the training, stops the training with the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        spent = [entry["minutes"] for entry in state.log_history if "minutes" in entry]
        self.clock.start(max(spent, default=0.0))

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.clock.tick(args.device)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_training_stop |= self.clock.share() >= 1.0


def timed_schedule(optimizer: Optimizer, clock: Clock, num_training_steps: int, warmup: float) -> LambdaLR:
    """Linear warm-up and decay over the steps or over the time, whichever is further on; a ``warmup`` below 1 is a share of them."""
    steps = max(1, num_training_steps)

    def scale(step: int) -> float:
        done = max(step / steps, clock.share())
        risen = (step + 1) / max(1.0, warmup) if warmup >= 1 or warmup == 0 else max((step + 1) / steps, clock.share()) / warmup
        return min(1.0, risen) * max(0.0, 1.0 - done)

    return LambdaLR(optimizer, scale)
