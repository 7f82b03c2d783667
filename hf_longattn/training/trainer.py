"""The Trainer of every task: transformers' Trainer with one mean loss per step, a time limit, and batches by number of
tokens."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import broadcast, gather_object
from huggingface_hub.errors import HfHubHTTPError
from pyarrow.compute import list_value_length
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import BatchSampler, DataLoader
from transformers import (
    Cache,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput

from ..data.batching import EpochAwareCollator, EpochSampler, TokenBudget
from ..errors import LongAttentionError, OptionError, in_a_line
from ..evaluation.summaries import ratio_and_error
from ..loading import translated_errors
from ..mechanisms.routing import synchronise_centroids
from ..modeling.attach.attachment import mark_for_zero3
from ..modeling.losses import deferred_logits, label_count, share_of_step


class DivergenceError(LongAttentionError):
    """A loss became NaN or infinite."""


class LongTrainer(Trainer):
    """transformers' Trainer for long inputs and short budgets.

    The loss of a step is the mean over the labels of all its batches and processes, as for one large batch. A subclass
    may define :meth:`mean_loss`, the mean loss over the labels of a batch, and :meth:`items_of`, the number of labels
    in a batch.

    Overridden methods of Trainer:

    - ``compute_loss``, ``get_batch_samples``: weight each batch by its number of labels. A run that is resumed after
      its last step takes no further step.
    - ``get_train_dataloader``: make batches of ``tokens_per_batch`` tokens. Rows of similar length are grouped in the
      same way when a run is resumed.
    - ``get_eval_dataloader``: use ``eval_collator``.
    - ``prediction_step``: compute no logits for an evaluation of the loss alone.
    - ``evaluation_loop``: add the standard error of the loss, or return the scores of ``measure``.
    - ``create_scheduler``: follow the time limit, if there is one. Every step has a learning rate above 0.

    Args:
        eval_collator: collator for evaluations. By default, it is ``data_collator``, but its random masks and
            augmentations are the same in every evaluation.
        measure: function that evaluates the model and returns scores by name. It replaces Trainer's loop over
            ``eval_dataset``.
        args, kwargs: arguments of Trainer.

    Raises:
        OptionError: Trainer refuses its arguments.
        DivergenceError: a logged loss is not a finite number.
    """

    data_collator: Any
    shards = True
    """Whether weights may be split over processes by FSDP or DeepSpeed."""
    # Trainer reads this attribute. If it is True, training_step does not divide the loss by the number of accumulated
    # batches: compute_loss returns the batch's share of the mean over the labels of all these batches.
    loss_is_scaled_for_ga = True

    def __init__(
        self, *args: Any, eval_collator: Any = None, measure: Callable[[], dict[str, Any]] | None = None, **kwargs: Any
    ) -> None:
        # Trainer turns use_cache off in the config. The saved model gets this value again.
        config = getattr(kwargs.get("model", next(iter(args), None)), "config", None)
        self.use_cache = getattr(config, "use_cache", None)
        try:
            super().__init__(*args, **kwargs)
        except LongAttentionError:
            raise
        except HfHubHTTPError:  # Trainer creates the repository for push_to_hub
            with translated_errors(str(self.args.hub_model_id), self.args.hub_token):
                raise
        except (ValueError, RuntimeError, ImportError) as error:
            raise OptionError(f"{in_a_line(error)}.") from error
        if self.get_cp_size() > 1:
            raise OptionError("The sequences of a Long model cannot be split over processes; leave cp_size out.")

        # Evaluation and batches
        if eval_collator is None and isinstance(self.data_collator, EpochAwareCollator):
            eval_collator = self.data_collator.for_evaluation()
        self.eval_collator = eval_collator
        self.measure = measure
        self.model_accepts_loss_kwargs = False  # every head returns the mean over a batch
        self.groups_by_length = self.args.train_sampling_strategy == "group_by_length"
        if self.groups_by_length:
            self.args.train_sampling_strategy = "random"  # else Trainer would also group the rows of evaluations

        # The model without wrappers
        inner: Any = self.accelerator.unwrap_model(self.model)
        if hasattr(inner, "get_base_model"):  # peft wraps the model
            inner = inner.get_base_model()
        self.head = type(inner).__name__
        # deferred_logits changes the head of this model. Under torch's DataParallel it is not used (None), because
        # DataParallel copies the head to all devices and gathers only tensors.
        self.inner = inner if self.args.n_gpu < 2 else None
        if is_deepspeed_zero3_enabled():
            mark_for_zero3(inner)

        # Losses of an evaluation: the mean over a batch, its number of rows, and its number of labels
        self.batch_losses: list[tuple[Tensor, int, Tensor | None]] = []
        self.minutes = Minutes(getattr(self.args, "max_minutes", None))
        # With a time limit, the number of steps is unknown, so a progress bar of steps is replaced.
        if self.minutes.limit is not None and self.pop_callback(ProgressCallback):
            self.add_callback(PrinterCallback)
        for callback in (self.minutes, SetEpoch(), SynchroniseCentroids()):
            self.add_callback(callback)

    def get_train_dataloader(self) -> Any:
        """A data loader with the batches of :meth:`train_batches`, if it returns a sampler, or else Trainer's own."""
        batches = self.train_batches()
        if batches is None:
            return super().get_train_dataloader()
        loader: Any = DataLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        # accelerate can even out only batches of equal size. Samplers of other batches (without a ``batch_size``) give
        # every process the same number of batches by themselves.
        even_batches = self.accelerator.even_batches
        self.accelerator.even_batches = batches.batch_size is not None and even_batches
        prepared = self.accelerator.prepare(loader)
        self.accelerator.even_batches = even_batches  # for evaluations
        return prepared

    def train_batches(self) -> Any:
        """A sampler of training batches, or ``None`` for the batches of Trainer.

        The batches have at most ``tokens_per_batch`` tokens, or else rows of similar length.
        """
        args, budget = self.args, getattr(self.args, "tokens_per_batch", 0)
        if not budget and not self.groups_by_length:
            return None
        lengths = row_lengths(self.train_dataset)
        if budget:
            padded = not getattr(self.data_collator, "pack", False)
            return TokenBudget(lengths, budget, args.seed, padded=padded, processes=args.world_size)
        groups = SeededGroups(args.train_batch_size * args.gradient_accumulation_steps, lengths=lengths)
        groups.seed = args.seed
        return BatchSampler(groups, args.train_batch_size, args.dataloader_drop_last)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """A data loader with ``eval_collator``. With ``measure``, which reads the data itself, it is an empty list."""
        if self.measure is not None:
            return []
        train_collator = self.data_collator
        if self.eval_collator is not None:
            self.data_collator = self.eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = train_collator

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """The batches of a step, and their number of labels, averaged over processes.

        After the last step, there are no batches, and the training stops.
        """
        if self.state.global_step >= self.state.max_steps or self.minutes.fraction() >= 1.0:
            self.control.should_training_stop = True
            return [], None
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        items: Any = torch.stack([torch.as_tensor(self.items_of(batch), device=device) for batch in batches]).sum(0)
        if self.args.average_tokens_across_devices:  # the mean, because gradients are averaged over processes
            items = self.accelerator.reduce(items.float(), "mean")
        return batches, items

    def items_of(self, inputs: Mapping[str, Any]) -> Tensor | int:
        """The number of labels in a batch, over which :meth:`mean_loss` averages. Without labels, its rows."""
        count = label_count(self.head, inputs)
        return batch_rows(inputs) if count is None else count

    def mean_loss(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """The mean loss over the labels of a batch, and the outputs of the model.

        Tasks with another loss override this method. If the loss is a sum of parts that average over different labels,
        the loss and :meth:`items_of` are vectors with an element for each part.
        """
        with deferred_logits(self.inner) if model.training else nullcontext():
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        return loss.mean(), outputs  # torch's DataParallel returns one loss per device

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:  # Trainer's signature
        """In training, a batch's share of the mean loss over all labels of a step. In evaluation, its mean loss."""
        labels = label_count(self.head, inputs)
        # For some losses, Trainer gives num_items_in_batch in evaluations, too.
        training = num_items_in_batch is not None and model.training
        items = self.items_of(inputs) if training else None  # counted here: label smoothing removes the labels
        loss, outputs = self.mean_loss(model, inputs)
        if training:
            loss = share_of_step(loss, torch.as_tensor(items, device=loss.device), num_items_in_batch)
        else:
            self.batch_losses.append((loss.detach().sum(), batch_rows(inputs), labels))
        if isinstance(outputs, dict):  # Trainer gathers the outputs of all processes, but cannot gather a cache
            outputs = {name: value for name, value in outputs.items() if not isinstance(value, Cache)}
        return (loss.sum(), outputs) if return_outputs else loss.sum()

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> Any:
        """As in Trainer. If only the loss is needed, a causal language model never holds all of its logits."""
        with deferred_logits(self.inner) if prediction_loss_only else nullcontext():
            return super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Trainer's scheduler with the learning rates of :meth:`Minutes.rate`."""
        scheduler: Any = super().create_scheduler(num_training_steps, optimizer)
        if isinstance(scheduler, LambdaLR):
            warmup = self.args.warmup_steps
            if self.minutes.limit is None:
                warmup = self.args.get_warmup_steps(num_training_steps)
            rates = [self.minutes.rate(rate, max(1, num_training_steps), warmup) for rate in scheduler.lr_lambdas]
            self.lr_scheduler = scheduler = LambdaLR(scheduler.optimizer, rates)
        return scheduler

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's loop, plus the number of rows ``n`` and the standard error of the loss over batches, ``loss_se``.

        Batches without a label do not count in the loss. With ``measure``, its scores are returned instead.
        """
        prefix = kwargs.get("metric_key_prefix", "eval")
        if self.measure is not None:
            scores = self.measure()
            metrics = {f"{prefix}_{name}": value for name, value in scores.items()}
            return EvalLoopOutput(None, None, metrics, scores.get("n", 0))
        self.batch_losses = []
        output = super().evaluation_loop(*args, **kwargs)
        output.metrics.setdefault(f"{prefix}_n", output.num_samples)
        if f"{prefix}_loss" in output.metrics:
            sums_and_sizes = [
                (float(loss) * size, size)
                for loss, size, labels in self.batch_losses
                if labels is None or bool(labels)
            ]
            if self.args.world_size > 1:
                sums_and_sizes = gather_object(sums_and_sizes)
            mean, error = ratio_and_error(sums_and_sizes)
            # Trainer's mean is NaN if a batch has no labels.
            if not math.isfinite(output.metrics[f"{prefix}_loss"]) and sums_and_sizes:
                output.metrics[f"{prefix}_loss"] = mean
            if error is not None:
                output.metrics[f"{prefix}_loss_se"] = error
        return output


class Minutes(TrainerCallback, ExportableState):
    """Time limit and learning rate of a training. Stops the training if a loss is not finite.

    All processes use the clock of the first process, read after each step. They therefore stop after the same step and
    have the same learning rate. A resumed run also counts the minutes of earlier runs.

    Args:
        limit: in minutes; ``None`` = no limit.

    Attributes:
        spent: minutes until the last step.
        first_step: minutes until the first step. Until then, the model was evaluated.
        logged: :meth:`fraction` at the last log entry.
    """

    def __init__(self, limit: float | None = None) -> None:
        self.limit, self.spent = limit, 0.0
        self.first_step: float | None = None
        self.logged = 0.0

    def fraction(self) -> float:
        """Elapsed fraction of the time from the first step to the limit. Equal in all processes."""
        if self.limit is None:
            return 0.0
        start = self.first_step or 0.0
        if self.limit <= start:
            return 1.0
        return (self.spent - start) / (self.limit - start)

    def rate(self, rate: Callable[[int], float], steps: int, warmup: float) -> Callable[[int], float]:
        """A schedule: step number, from 0 -> learning rate as a fraction of the peak, above 0 from the first step on.

        Without a time limit, it is ``rate``, but step k of w in the warm-up has (k + 1) / w of the peak. With a time
        limit, it is a linear warm-up and decay. Both go by the steps or by the time, whichever is further along.

        Args:
            rate: Trainer's schedule.
            steps: number of steps of the training.
            warmup: number of steps of the warm-up. With a time limit, a number below 1 is a fraction of the training.
        """

        def scheduled(step: int) -> float:
            """The learning rate of a step, as a fraction of the peak."""
            if self.limit is None:
                if step < warmup:
                    return min(1.0, rate(step) + 1 / warmup)
                return rate(step)
            done = max(step / steps, self.fraction())
            if warmup >= 1 or warmup == 0:
                warm = (step + 1) / max(1.0, warmup)
            else:
                warm = max((step + 1) / steps, self.fraction()) / warmup
            return min(1.0, warm) * max(0.0, 1.0 - done)

        return scheduled

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock. A resumed run takes the minutes of earlier runs from its checkpoint."""
        earlier: dict[str, Any] = {}
        if state.global_step:
            earlier = (state.stateful_callbacks or {}).get("Minutes", {}).get("attributes", {})
        self.started = time.monotonic()
        self.spent = self.before = earlier.get("spent", 0.0)
        self.first_step = earlier.get("first_step")
        # The checkpoint of a finished run has a learning rate of 0. It is computed again, for the steps of this run.
        lr_scheduler = kwargs.get("lr_scheduler")
        if state.global_step and isinstance(lr_scheduler, LambdaLR):
            lr_scheduler.last_epoch -= 1
            lr_scheduler.step()

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Note the time before the first step. Refuse to train if no time is left."""
        if self.first_step is None:
            self.on_optimizer_step(args, state, control)
            self.first_step = self.spent
            if self.limit is not None and self.spent >= self.limit:
                raise OptionError(
                    f"The evaluation before the first step took {self.spent:.1f} of the {self.limit:g} minutes; give "
                    "more --max-minutes, add --no-eval-on-start, or lower --max-eval-samples."
                )

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.spent = self.before + (time.monotonic() - self.started) / 60
        if self.limit is not None:
            self.spent = float(broadcast(torch.tensor([self.spent], device=args.device))[0])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop the training at the limit, and log at every twentieth of the time."""
        fraction = self.fraction()
        control.should_training_stop |= fraction >= 1.0
        # Trainer logs every few steps, but the number of steps within the time limit is unknown.
        if args.logging_strategy == "steps" and (fraction - self.logged >= 0.05 or fraction >= 1.0):
            control.should_log = True
            self.logged = fraction

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Raise :class:`DivergenceError` if a logged loss is not a finite number."""
        logs, step = kwargs.get("logs") or {}, state.global_step
        for key, noun in (("loss", "loss"), ("eval_loss", "held-out loss")):
            if math.isfinite(logs.get(key, 0.0)):
                continue
            when = "before any training: the model computes NaN or infinity"
            advice = "give another --model, or --no-bf16"
            if step:
                when = f"at step {step}"
                advice = f"lower --learning-rate, which is {args.learning_rate:g}, and add --resume or --overwrite"
            raise DivergenceError(f"The {noun} is not a finite number {when}; {advice}.")

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"spent": self.spent, "first_step": self.first_step}}


class SetEpoch(TrainerCallback):
    """Sets the epoch of the collator and of the batch sampler.

    accelerate does not restore the epoch of the sampler if several processes resume.
    """

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        loader = kwargs.get("train_dataloader")
        collator = getattr(loader, "collate_fn", None)
        if isinstance(collator, EpochAwareCollator):
            collator.epoch = int(state.epoch or 0)
        sampler = getattr(loader, "batch_sampler", None)
        while sampler is not None:  # samplers may wrap each other
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(int(state.epoch or 0))
            sampler = getattr(sampler, "batch_sampler", getattr(sampler, "sampler", None))


class SynchroniseCentroids(TrainerCallback):
    """Updates the centroids of the mechanism ``routing`` from the tokens of all processes.

    This callback also works in transformers' Trainer.
    """

    def on_substep_end(self, *_: Any, **about: Any) -> None:
        synchronise_centroids(about["model"])

    on_optimizer_step = on_substep_end


class SeededGroups(LengthGroupedSampler, EpochSampler):
    """Groups rows of similar length, as transformers does.

    Here, the groups depend only on seed and epoch, so that a resumed run has the same groups.
    """

    seed = 0

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(random.Random(f"{self.seed}:{self.epoch}").getrandbits(63))
        return super().__iter__()


def row_lengths(data: Any) -> list[int]:
    """Number of tokens of each row: the column ``length``, or else the number of ``input_ids``."""
    names = getattr(data, "column_names", None) or ()
    if "length" in names:
        return list(data["length"])
    if "input_ids" not in names:
        raise OptionError("--tokens-per-batch requires rows of known length; give --batch-size instead.")
    return [
        length
        for rows in data.with_format("arrow").iter(1000)
        for length in list_value_length(rows["input_ids"]).to_pylist()
    ]


def batch_rows(inputs: Mapping[str, Any]) -> int:
    """Number of rows in a batch. If packed documents have a label each, the number of documents.

    It is the length of the labels, or else of the first tensor with a batch axis.
    """
    for value in (inputs.get("labels"), *inputs.values()):
        if isinstance(value, Tensor) and value.dim():
            return len(value)
    return 1


def highest(logits: Any, labels: Tensor) -> Tensor:
    """Index of the highest logit on the last axis, for ``preprocess_logits_for_metrics``."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)
