"""Trainer by the clock."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer

from hf_longattn.training.timed import Clock, StopInTime, timed_schedule


class TimedTrainer(Trainer):
    """A Trainer that can be given a time instead of steps."""

    def __init__(self, *args: Any, max_minutes: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.clock = Clock(max_minutes)
        self.add_callback(StopInTime(self.clock))

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        self.lr_scheduler = timed_schedule(optimizer or self.optimizer, self.clock, num_training_steps, self.args.warmup_steps)
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log({**logs, "minutes": round(self.clock.elapsed(), 2)}, start_time)


def average_over_batches(trainer: Trainer) -> None:
    """Let a step's loss be the mean of its batches' losses, in this process and the others.

    Trainer takes every ``forward`` with free keyword arguments for one that divides by the labels of the whole step. Heads for masked
    tokens and for classes give the mean of one batch, and their gradients would be added up: eight times too large with eight batches.
    """
    trainer.model_accepts_loss_kwargs = False
