"""The Trainer of every task: it can be given a time instead of steps, and all processes stop after the same step."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.utils.data
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, SequentialSampler
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import LengthGroupedSampler

from hf_longattn.data.batching import TokenBudget
from hf_longattn.data.masking import RepeatableMasks
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.routing import synchronise_centroids
from hf_longattn.modeling.attachment import mark_for_zero3
from hf_longattn.modeling.mixin import LongAttentionMixin, divides_by_items
from hf_longattn.modeling.run.sharding import sequence_parallel
from hf_longattn.private_apis import TrainerHooks, leave_context_parallelism
from hf_longattn.training.processes import saving

LEAST_LOGS = 10
"""Log entries of a short run."""


class TimedTrainer(TrainerHooks, Trainer):
    """transformers' Trainer with a time budget.

    Args:
        max_minutes: stop after this time, with a learning rate of zero by then; a resumed run counts the minutes before. ``None`` = no
            limit: the schedule is Trainer's own.
        eval_collator: makes the batches of evaluations and predictions, if not ``data_collator``.
        *args, **kwargs: Trainer's.

    Evaluations and predictions are in the order of the rows. Masked tokens are drawn anew in every pass over the data, and are the same in
    every evaluation.
    """

    data_collator: Any

    def __init__(self, *args: Any, max_minutes: float | None = None, eval_collator: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        masks = self.data_collator if isinstance(self.data_collator, RepeatableMasks) else None
        self.eval_collator = masks.for_evaluation() if eval_collator is None and masks is not None else eval_collator
        inner: Any = self.accelerator.unwrap_model(self.model)
        inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner  # of peft
        self.model_accepts_loss_kwargs &= divides_by_items(type(inner))
        mark_for_zero3(inner)
        self.card: Callable[[], object] | None = None
        self.throughput = Throughput()
        self.clock = Clock(max_minutes)
        self.add_callback(StopInTime(self.clock))
        self.add_callback(LogEnough())
        self.add_callback(SynchroniseCentroids())
        self.add_callback(OrderOfPass(masks))
        self.add_callback(Processes(self.args.world_size))
        patience = getattr(self.args, "early_stopping_patience", 0)
        if patience:
            self.add_callback(EarlyStoppingCallback(patience))

    def get_train_dataloader(self) -> Any:
        """With ``tokens_per_batch``, batches of that many tokens; see :class:`TokenBudget`."""
        budget = getattr(self.args, "tokens_per_batch", 0)
        if not budget:
            return super().get_train_dataloader()
        data: Any = self.train_dataset
        if "length" not in getattr(data, "column_names", ()):
            raise OptionError("tokens_per_batch needs rows of known length, which a stream of text has not; give --batch_size instead")
        self.accelerator.even_batches = False  # TokenBudget makes as many batches for every process
        padded = not getattr(self.data_collator, "pack", False)
        batches = TokenBudget(data["length"], budget, self.args.seed, padded=padded, processes=self.args.world_size)
        workers, pinned = self.args.dataloader_num_workers, self.args.dataloader_pin_memory
        loader: Any = DataLoader(data, batch_sampler=batches, collate_fn=self.data_collator, num_workers=workers, pin_memory=pinned)
        return self.accelerator.prepare(loader)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        with self._collating_evaluation():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        with self._collating_evaluation():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _collating_evaluation(self) -> Iterator[None]:
        """Within the context ``data_collator`` is the one of evaluations."""
        usual = self.data_collator
        self.data_collator = usual if self.eval_collator is None else self.eval_collator
        try:
            yield
        finally:
            self.data_collator = usual

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """In the order of the rows: Trainer's groups them by length where it groups those of the training."""
        return SequentialSampler(eval_dataset) if isinstance(eval_dataset, Sized) else None

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        self.throughput.count(inputs)
        return super().training_step(model, inputs, *args, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.clock.minutes is None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = timed_schedule(optimizer or self.optimizer, self.clock, num_training_steps, self.args.warmup_steps)
        return self.lr_scheduler

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self._cuts_sequences():
            leave_context_parallelism(self.accelerator)

    def _cuts_sequences(self) -> bool:
        """Whether a Long model's sequences are cut over processes."""
        config = getattr(self.accelerator, "parallelism_config", None)
        return config is not None and config.cp_enabled and isinstance(self.model, LongAttentionMixin)

    def input_cutter(self, model: nn.Module) -> Callable[[], Any] | None:
        """With ``ParallelismConfig(cp_size=…)`` a Long model's sequences are cut by :func:`hf_longattn.sequence_parallel`: torch's context
        parallelism computes full causal attention alone, and refuses other implementations."""
        return partial(sequence_parallel, model, self.accelerator.torch_device_mesh["cp"]) if self._cuts_sequences() else None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        return SeededGroups(sampler, self.args.seed) if isinstance(sampler, LengthGroupedSampler) else sampler

    def is_done(self) -> bool:
        """Whether a run has taken all its steps or all its time: one that is resumed may have, and takes no further step."""
        return self.state.global_step >= self.state.max_steps or self.clock.fraction() >= 1.0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        speed = self.throughput.report(self.args.world_size) if "loss" in logs else {}
        super().log({**logs, **speed, "minutes": round(self.clock.elapsed(), 2)}, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As Trainer's, without ``training_args.bin``: a pickle, which nobody needs to use the model."""
        with saving():
            super().save_model(output_dir, _internal_call)
        if self.is_world_process_zero():
            Path(output_dir or str(self.args.output_dir), "training_args.bin").unlink(missing_ok=True)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Our card if ``card`` writes one, else Trainer's."""
        if self.card is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            self.card()


class Throughput:
    """Tokens that a process trains on, between two entries of the log."""

    def __init__(self) -> None:
        self.real: Tensor | int = 0
        self.cells = 0
        self.since: float | None = None

    def count(self, inputs: dict[str, Any]) -> None:
        """Add a batch; padding is what its mask says. The first batch starts the time."""
        self.since = time.monotonic() if self.since is None else self.since
        for name, ids in inputs.items():
            if name.endswith("input_ids") and isinstance(ids, Tensor):  # sentence-transformers has several
                mask = inputs.get("real", inputs.get(name.removesuffix("input_ids") + "attention_mask"))
                masked = isinstance(mask, Tensor) and mask.shape == ids.shape
                self.real = self.real + (mask.sum() if masked else ids.numel())  # type: ignore[union-attr]
                self.cells += ids.numel()

    def report(self, processes: int) -> dict[str, float]:
        """tokens_per_second of all processes (padding not counted), the share of padding, and the peak memory of this process in GB."""
        if not self.cells or self.since is None:
            return {}
        now = time.monotonic()
        real, cells, seconds = float(self.real), self.cells, max(now - self.since, 1e-9)
        self.real, self.cells, self.since = 0, 0, now
        memory = peak_memory()
        speed = {"tokens_per_second": round(processes * real / seconds, 1), "padding": round(1 - real / cells, 4)}
        return {**speed, **({} if memory is None else {"peak_memory_gb": round(memory / 1e9, 2)})}


def peak_memory() -> int | None:
    """Bytes at most allocated on the GPU, or else resident in this process; ``None`` where the system does not tell."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class SeededGroups(torch.utils.data.Sampler[int]):
    """Groups by length that depend on the seed and the epoch. Trainer draws them from the process's generator, whose state a resumed run
    does not have at the start of an epoch."""

    def __init__(self, sampler: LengthGroupedSampler, seed: int) -> None:
        self.sampler, self.seed, self.epoch = sampler, seed, 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(random.Random(f"{self.seed}:{self.epoch}").getrandbits(63))
        return iter(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before every epoch."""
        self.epoch = epoch


class Clock:
    """Minutes since the first step, as a fraction of the time allowed; ``None`` minutes = no limit.

    All processes use the first one's clock as it was at the last :meth:`tick`, so they stop after the same step and have the same
    learning rate.
    """

    def __init__(self, minutes: float | None) -> None:
        self.minutes = minutes
        self.started: float | None = None
        self.before = self.agreed = 0.0

    def resume(self, before: float) -> None:
        """Put the clock to the minutes that a resumed run has spent already; it stands still until :meth:`start`."""
        self.started, self.before, self.agreed = None, before, before

    def start(self) -> None:
        """Let the clock run; called before every pass."""
        self.started = time.monotonic() if self.started is None else self.started

    def tick(self, device: torch.device) -> None:
        """Broadcast the first process's time; called by every process in every step."""
        if self.minutes is not None:
            self.agreed = float(broadcast(torch.tensor([self.elapsed()], device=device))[0])

    def elapsed(self) -> float:
        """Minutes spent."""
        return self.before + (0.0 if self.started is None else (time.monotonic() - self.started) / 60)

    def fraction(self) -> float:
        """Fraction of the time allowed that was spent at the last tick; the same in all processes."""
        return 0.0 if self.minutes is None else self.agreed / self.minutes


class StopInTime(TrainerCallback):
    """Starts the clock with the first pass, after an evaluation at the start, and stops the training with the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        spent = [entry["minutes"] for entry in state.log_history if "minutes" in entry]
        self.clock.resume(max(spent, default=0.0))

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.clock.start()

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.clock.tick(args.device)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_training_stop |= self.clock.fraction() >= 1.0


class SynchroniseCentroids(TrainerCallback):
    """Moves the centroids of ``routing`` by the tokens of all processes. Transformers' own Trainer takes it by ``callbacks=``."""

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any) -> None:
        synchronise_centroids(model)

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any) -> None:
        synchronise_centroids(model)


class OrderOfPass(TrainerCallback):
    """Tells the sampler, and the collator that draws masks, which pass over the data begins. Where one of several processes resumes,
    accelerate's loader, which skips batches, does not reach the sampler, and the rest of a later pass would have the order of the first."""

    def __init__(self, masks: RepeatableMasks | None = None) -> None:
        self.masks = masks

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, train_dataloader: Any = None, **_: Any
    ) -> None:
        if self.masks is not None:
            self.masks.passes = int(state.epoch or 0)
        sampler = getattr(train_dataloader, "batch_sampler", None)
        while sampler is not None:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(int(state.epoch or 0))
            sampler = getattr(sampler, "batch_sampler", getattr(sampler, "sampler", None))


class Processes(TrainerCallback, ExportableState):
    """Notes in trainer_state.json how many processes write a checkpoint, so that one which lacks a process's file is told from a complete
    one."""

    def __init__(self, count: int = 1) -> None:
        self.count = count

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"count": self.count}}


class LogEnough(TrainerCallback):
    """Logs a short run ``LEAST_LOGS`` times, and the last step of every run."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        often = max(1, state.max_steps // LEAST_LOGS)
        if args.logging_strategy == "steps" and often < state.logging_steps:  # a resumed run warns of a state with other logging_steps
            control.should_log = state.global_step % often == 0 or (state.global_step == 1 and args.logging_first_step)
        control.should_log |= control.should_training_stop or state.global_step >= state.max_steps


def timed_schedule(optimizer: Optimizer, clock: Clock, num_training_steps: int, warmup: float) -> LambdaLR:
    """Linear warm-up and decay over the steps or the time, whichever is further along; a ``warmup`` below 1 is a fraction of them."""
    steps = max(1, num_training_steps)

    def scale(step: int) -> float:
        done = max(step / steps, clock.fraction())
        risen = (step + 1) / max(1.0, warmup) if warmup >= 1 or warmup == 0 else max((step + 1) / steps, clock.fraction()) / warmup
        return min(1.0, risen) * max(0.0, 1.0 - done)

    return LambdaLR(optimizer, scale)
