"""The Trainer of every task. It takes a time limit in place of steps, and all processes stop after the same step."""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.utils.data
from accelerate.utils import broadcast, gather_object
from huggingface_hub import HfApi
from safetensors import safe_open
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, SequentialSampler
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState, ProgressCallback, tqdm
from transformers.trainer_pt_utils import LengthGroupedSampler

from hf_longattn.data.batching import EpochAwareCollator, EpochSampler, TokenBudget
from hf_longattn.errors import LongAttentionError, OptionError, in_a_line, nearest
from hf_longattn.evaluation.summaries import ratio_and_error
from hf_longattn.hub import PushReport, check_login, push_model
from hf_longattn.loading import load_weights, translated_errors
from hf_longattn.mechanisms.routing import synchronise_centroids
from hf_longattn.modeling.attach.attachment import mark_for_zero3
from hf_longattn.modeling.run.losses import label_count, share_of_step
from hf_longattn.training.processes import how_to_resume

LEAST_LOGS = 10
"""Log entries of a short run."""


class DivergenceError(LongAttentionError):
    """A loss or a gradient became NaN or infinite."""


class LongTrainer(Trainer):
    """transformers' Trainer for long inputs and short budgets: the Trainer of every task.

    The loss of a step is the mean over the labels of all its batches and processes, as of one large batch. A subclass may define
    :meth:`mean_loss`, the mean over a batch, and :meth:`items_of`, the number of labels in it.

    What it overrides, and why:

    - ``compute_loss``, ``get_batch_samples``: weigh every batch by its labels.
    - ``training_step``, ``_get_grad_norm``: count tokens, and end a training that diverges.
    - ``create_scheduler``: follow the minutes with a time budget, and let no step have a learning rate of 0.
    - ``get_train_dataloader``, ``_get_train_sampler``: batches of ``tokens_per_batch`` tokens, and groups that depend on the seed.
    - ``get_eval_dataloader``, ``get_test_dataloader``, ``_get_eval_sampler``: evaluation in the order of the rows, by ``eval_collator``.
    - ``evaluation_loop``, ``prediction_step``, ``log``: standard errors of the loss, an end if it is not finite, and tokens per second.
    - ``_run_epoch``: a resumed run takes no further step once its steps or minutes are spent.
    - ``_load_from_checkpoint``, ``_load_best_model``: weights that have another name in files than in the model.
    - ``save_model``, ``create_model_card``, ``init_hf_repo``, ``push_to_hub``: a complete folder, our card, and one sentence for an error.

    Args:
        eval_collator: makes the batches of evaluations and predictions, if not ``data_collator``.
        *args, **kwargs: Trainer's. Of :class:`LongTrainingArguments`, ``max_minutes`` stops the training after this time, with a learning
            rate of zero by then; a resumed run counts the minutes before. Without it, the schedule is Trainer's, with a first step that is
            not idle (:func:`without_idle_step`).

    Evaluations and predictions are in the order of the rows. Masked tokens and augmentations are drawn anew in every epoch;
    an evaluation has the same masks every time, and no augmentation.

    Raises:
        OptionError: Trainer refuses its arguments.
        DivergenceError: a loss or a gradient is not a finite number.
    """

    data_collator: Any
    loss_is_scaled_for_ga = True  # Trainer's name: :meth:`compute_loss` divides by the labels of all accumulated batches

    def __init__(self, *args: Any, eval_collator: Any = None, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except LongAttentionError:
            raise
        except (ValueError, RuntimeError, ImportError) as error:
            raise OptionError(f"{in_a_line(error)}.") from error
        counted = self.data_collator if isinstance(self.data_collator, EpochAwareCollator) else None
        self.eval_collator = counted.for_evaluation() if eval_collator is None and counted is not None else eval_collator
        self.model_accepts_loss_kwargs = False  # every head returns the mean over a batch
        self.args.logging_nan_inf_filter = False  # a training with such a loss ends
        inner: Any = self.accelerator.unwrap_model(self.model)
        inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner  # of peft
        self.head = type(inner).__name__
        mark_for_zero3(inner)
        self.card: Callable[[], object] | None = None
        self.throughput = Throughput()
        self.step_loss: Tensor | float = 0.0
        self.step_items: Any = None
        self.batch_losses: list[tuple[Tensor, int, Tensor | None]] = []
        self.clock = Clock(getattr(self.args, "max_minutes", None))
        self.add_callback(FollowClock(self.clock, getattr(self.args, "save_minutes", 0.0)))
        if self.clock.minutes is not None and self.pop_callback(ProgressCallback):
            self.add_callback(MinutesBar(self.clock))
        self.add_callback(LogEnough())
        self.add_callback(CheckBestMetric())
        self.add_callback(SynchroniseCentroids())
        self.add_callback(SetEpochCallback(counted))
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
        padded = not getattr(self.data_collator, "pack", False)
        return self.loader_of(TokenBudget(row_lengths(data), budget, self.args.seed, padded=padded, processes=self.args.world_size))

    def loader_of(self, batches: Any) -> Any:
        """The training data in the batches of a sampler, which makes as many for every process."""
        self.accelerator.even_batches = False
        workers, pinned = self.args.dataloader_num_workers, self.args.dataloader_pin_memory
        data: Any = self.train_dataset
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
        """Use the evaluation's collator as ``data_collator`` within the context."""
        training_collator = self.data_collator
        self.data_collator = training_collator if self.eval_collator is None else self.eval_collator
        try:
            yield
        finally:
            self.data_collator = training_collator

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """In the order of the rows. Trainer's sampler would group them by length if it does so in training."""
        return SequentialSampler(eval_dataset) if isinstance(eval_dataset, Sized) else None

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Tensor | None]:
        """The batches of a step, and the number of their labels in all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.step_items = self.items_of_step(batches, device) if batches else None
        return batches, self.step_items

    def items_of_step(self, batches: Sequence[dict[str, Any]], device: torch.device) -> Tensor:
        """The number of labels of a step. Without ``average_tokens_across_devices``, of this process."""
        return self.over_processes(torch.stack([torch.as_tensor(self.items_of(batch), device=device) for batch in batches]).sum(0))

    def over_processes(self, count: Tensor) -> Tensor:
        """The mean of a count over all processes, as gradients are averaged."""
        mean: Any = self.accelerator.reduce(count.float(), "mean") if self.args.average_tokens_across_devices else count
        return mean

    def items_of(self, inputs: Mapping[str, Any]) -> Tensor | int:
        """The number of labels over which :meth:`mean_loss` averages, or of rows if the head averages over rows."""
        count = label_count(self.head, inputs)
        return rows_of(inputs) if count is None else count

    def mean_loss(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """The mean loss over the labels of a batch, and the outputs. Tasks with another loss override this.

        If parts of the loss average over different labels, loss and :meth:`items_of` are vectors.
        """
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        return loss.mean(), outputs  # of torch's DataParallel, a loss of each device

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Any:  # Trainer's signature
        """The batch's share of the mean over all labels of a step; in evaluations, the mean over the batch."""
        items = None if num_items_in_batch is None else self.items_of(inputs)  # before label smoothing takes the labels out
        loss, outputs = self.mean_loss(model, inputs)
        if items is not None:
            loss = share_of_step(loss, torch.as_tensor(items, device=loss.device), num_items_in_batch)
        return (loss.sum(), outputs) if return_outputs else loss.sum()

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        self.throughput.count(inputs)
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.step_loss = self.step_loss + loss
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """As Trainer's. A loss or gradient that is not finite ends the training before the step.

        The scaler of fp16 skips such steps and lowers its scale. The training ends when the scale is below 1.
        """
        grad_norm = super()._get_grad_norm(model, grad_norm)
        loss, self.step_loss = float(self.step_loss), 0.0
        norm = grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm  # of FSDP
        scaler = getattr(self.accelerator, "scaler", None)
        if not math.isfinite(loss + float(0.0 if norm is None else norm)) and (scaler is None or scaler.get_scale() < 1):
            what, step = "gradient" if math.isfinite(loss) else "loss", self.state.global_step + 1
            raise DivergenceError(f"The {what} is not a finite number at step {step}; {self.advice()}.")
        return grad_norm

    def check_held_out(self, loss: float) -> None:
        """End a training whose held-out loss is NaN or infinite.

        Raises:
            DivergenceError: the loss is not finite.
        """
        if math.isfinite(loss):
            return
        if step := self.state.global_step:
            raise DivergenceError(f"The held-out loss is not a finite number after step {step}; {self.advice()}.")
        raise DivergenceError(
            "The held-out loss is not a finite number before any training: the model computes NaN or infinity; give another --model, or "
            "another precision (--no-bf16)."
        )

    def advice(self) -> str:
        """What to type after a divergence."""
        return f"lower --learning-rate, which is {self.args.learning_rate:g}; {how_to_resume(Path(str(self.args.output_dir)))}"

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.clock.minutes is None:
            scheduler = super().create_scheduler(num_training_steps, optimizer)
            self.lr_scheduler = without_idle_step(scheduler, self.args.get_warmup_steps(num_training_steps))
            return self.lr_scheduler
        self.lr_scheduler = timed_schedule(optimizer or self.optimizer, self.clock, num_training_steps, self.args.warmup_steps)
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        return SeededGroups(sampler, self.args.seed) if isinstance(sampler, LengthGroupedSampler) else sampler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Skip the epoch where all steps or all the time are spent: a run that is resumed takes no further step."""
        if self.state.global_step >= self.state.max_steps or self.clock.fraction() >= 1.0:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; the metrics have the number of rows, ``n``, and the standard error of the loss over batches, ``loss_se``.

        Batches without a label have no loss.

        Raises:
            DivergenceError: the loss of a batch with labels is not finite.
        """
        self.batch_losses = []
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        loss = output.metrics.get(f"{prefix}_loss")
        if loss is not None:
            values = [(float(value.mean()), size) for value, size, labels in self.batch_losses if labels is None or bool(labels)]
            gathered = gather_object(values) if self.args.world_size > 1 else values
            mean, error = ratio_and_error([(value * size, size) for value, size in gathered])
            self.check_held_out(mean)
            loss = mean if gathered and not math.isfinite(loss) else loss
            scores = {"loss": loss, "n": output.num_samples, **({} if error is None else {"loss_se": error})}
            output.metrics.update({f"{prefix}_{name}": value for name, value in scores.items()})
        return output

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; notes the loss of the batch."""
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if loss is not None:
            self.batch_losses.append((loss, rows_of(inputs), label_count(self.head, inputs)))
        return loss, logits, labels

    def log_scores(self, scores: Mapping[str, Any], prefix: str = "eval") -> dict[str, float]:
        """Log scores like an evaluation of Trainer, with ``prefix`` before their names, and return them.

        Raises:
            DivergenceError: their loss is not finite.
        """
        self.check_held_out(scores.get("loss", 0.0))
        metrics = {f"{prefix}_{name}": float(value) for name, value in scores.items() if isinstance(value, (int, float))}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As Trainer's. A refusal of the Hub, or a public repository in place of a private one, becomes one sentence."""
        name = str(self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name)
        if self.is_world_process_zero():
            check_login(name, **self._access(token, private))
        with translated_errors(name, self.args.hub_token):
            super().init_hf_repo(token, *([] if private is None else [private]))  # transformers 5.20 has one argument

    def push_to_hub(
        self, commit_message: str | None = None, blocking: bool = True, token: str | None = None, revision: str | None = None,
        private: bool | None = None, **card: Any,
    ) -> PushReport | Future[PushReport] | None:  # fmt: skip
        """Save the model and its card, and upload them by :func:`~hf_longattn.hub.push_model`, without other files: Trainer uploads the
        whole folder. Without ``blocking`` the upload runs in the background."""
        args: Any = self.args
        self.callback_handler.on_push_begin(args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        tags = getattr(self.accelerator.unwrap_model(self.model), "model_tags", None) or []
        self.create_model_card(**{"model_name": str(self.hub_model_id).rpartition("/")[2], "tags": [*tags], **card})
        upload = partial(
            push_model, args.output_dir, str(self.hub_model_id), revision=revision or args.hub_revision, commit_message=commit_message,
            **self._access(token, private),
        )  # fmt: skip
        return upload() if blocking else HfApi().run_as_future(upload)

    def _access(self, token: str | None, private: bool | None) -> dict[str, Any]:
        """The token of an upload, and whether its repository is private; by default from the training's arguments."""
        return {
            "token": self.args.hub_token if token is None else token,
            "private": bool(self.args.hub_private_repo if private is None else private),
        }

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *model: Any) -> None:
        """As Trainer's, also for weights that have other names in files; see :func:`load_renamed`."""
        if self._weights_are_sharded() or not load_renamed(model[0] if model else self.model, Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, *model)

    def _load_best_model(self) -> None:
        """As Trainer's, with the names of :meth:`_load_from_checkpoint`."""
        if self._weights_are_sharded() or not load_renamed(self.model, Path(str(self.state.best_model_checkpoint))):
            super()._load_best_model()

    def _weights_are_sharded(self) -> bool:
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        speed = self.throughput.report(self.args.world_size) if "loss" in logs else {}
        super().log({**logs, **speed, "minutes": round(self.clock.elapsed(), 2)}, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As Trainer's, without the pickle ``training_args.bin``, which no user of the model needs.

        The tokenizer is saved without the truncation and padding of the last batch.
        """
        tokenizer = getattr(getattr(self.processing_class, "tokenizer", self.processing_class), "backend_tokenizer", None)
        if tokenizer is not None:
            tokenizer.no_truncation()
            tokenizer.no_padding()
        super().save_model(output_dir, _internal_call)
        if self.is_world_process_zero():
            Path(output_dir or str(self.args.output_dir), "training_args.bin").unlink(missing_ok=True)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Our card if ``card`` writes one, else Trainer's."""
        if self.card is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            self.card()


class MeasuringTrainer(LongTrainer):
    """A trainer whose evaluations call a function.

    Args:
        measure: returns scores by name, the same in all processes: of the held-out data, or of the data in its argument.
        *args, **kwargs: :class:`LongTrainer`'s.
    """

    def __init__(self, *args: Any, measure: Callable[..., dict[str, Any]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.measure = measure

    def evaluate(self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The scores, logged as Trainer logs an evaluation."""
        return self.log_scores(self.measure() if eval_dataset is None else self.measure(eval_dataset), metric_key_prefix)


def load_renamed(model: Any, folder: Path) -> bool:
    """Load a checkpoint whose weights have other names than the model's parameters, as ``from_pretrained`` does. transformers saves a ViT,
    a mixture of experts and others under older names.

    Returns:
        Whether the names differ. Otherwise nothing is loaded.
    """
    if not isinstance(model, PreTrainedModel) or not (names := tensor_names(folder)) or names <= set(model.state_dict()):
        return False
    loaded = load_weights(type(model), folder, config=model.config, dtype=model.dtype)
    model.load_state_dict(loaded.state_dict())
    return True


def tensor_names(folder: Path) -> set[str]:
    """The names of the tensors in a folder's safetensors files."""
    names: set[str] = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return names


def row_lengths(data: Any) -> list[int]:
    """The tokens of each row: its column ``length``, or else its ``input_ids``.

    Raises:
        OptionError: rows of unknown length.
    """
    names = getattr(data, "column_names", None) or ()
    if "length" in names:
        return list(data["length"])
    if "input_ids" not in names or not hasattr(data, "__len__"):
        raise OptionError("--tokens-per-batch requires rows of known length; give --batch-size instead for a stream of text.")
    return [len(ids) for rows in data.iter(1000) for ids in rows["input_ids"]]


class Throughput:
    """Tokens that a process trains on, between two entries of the log."""

    def __init__(self) -> None:
        self.real: Tensor | int = 0
        self.cells = 0
        self.since: float | None = None

    def count(self, inputs: dict[str, Any]) -> None:
        """Add a batch. Its mask defines the padding. The first batch starts the time."""
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


class SeededGroups(EpochSampler):
    """Groups by length that depend on the seed and the epoch. Trainer draws them from the process's generator, which a resumed run does not
    restore to the start of the epoch."""

    def __init__(self, sampler: LengthGroupedSampler, seed: int) -> None:
        self.sampler, self.seed = sampler, seed

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(random.Random(f"{self.seed}:{self.epoch}").getrandbits(63))
        return iter(self.sampler)


class Clock:
    """Minutes of a run, with its evaluation before the first step.

    All processes use the first one's time at the last :meth:`tick`. So they stop and save after the same step, with the same learning rate.

    Args:
        minutes: the time allowed; ``None`` = no limit.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.minutes = minutes
        self.started: float | None = None
        self.before = self.agreed = self.first_step = 0.0

    def start(self, before: float = 0.0, first_step: float | None = None) -> None:
        """Let the clock run.

        Args:
            before: the minutes that a resumed run has spent already.
            first_step: minutes before the first step; ``None`` = now.
        """
        self.started, self.before, self.agreed = time.monotonic(), before, before
        self.first_step = before if first_step is None else first_step

    def tick(self, device: torch.device) -> None:
        """Broadcast the first process's time; called by every process in every step."""
        self.agreed = float(broadcast(torch.tensor([self.elapsed()], device=device))[0])

    def elapsed(self) -> float:
        """Minutes spent."""
        return self.before + (0.0 if self.started is None else (time.monotonic() - self.started) / 60)

    def fraction(self) -> float:
        """Spent fraction of the time between the first step and the limit, at the last tick. It is the same in all processes."""
        if self.minutes is None:
            return 0.0
        allowed = self.minutes - self.first_step
        return (self.agreed - self.first_step) / allowed if allowed > 0 else 1.0


class FollowClock(TrainerCallback, ExportableState):
    """Stops the training at its time limit, and saves a checkpoint when the last one is older than ``save_minutes``.

    A resumed run begins with the learning rate of its own steps or minutes, not with the checkpoint's.

    Raises:
        OptionError: the evaluation before the first step took all of the time.
    """

    def __init__(self, clock: Clock | None = None, save_minutes: float = 0.0) -> None:
        self.clock, self.save_minutes, self.saved = clock or Clock(), save_minutes, 0.0
        self.is_first_pass = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, lr_scheduler: Any = None, **_: Any
    ) -> None:
        spent = max((entry["minutes"] for entry in state.log_history if "minutes" in entry), default=0.0)
        attributes = (state.stateful_callbacks or {}).get(type(self).__name__, {}).get("attributes", {})
        self.is_first_pass = not state.global_step
        self.clock.start(spent, None if self.is_first_pass else attributes.get("first_step", 0.0))
        self.saved = spent
        if state.global_step and isinstance(lr_scheduler, LambdaLR):  # the checkpoint's rate is 0 where a run that resumes had ended
            lr_scheduler.last_epoch -= 1
            lr_scheduler.step()

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not self.is_first_pass:
            return
        self.is_first_pass = False
        self.clock.tick(args.device)
        self.clock.first_step = self.clock.agreed
        if self.clock.minutes is not None and self.clock.first_step >= self.clock.minutes:
            raise OptionError(
                f"The evaluation before the first step took {self.clock.first_step:.1f} of the {self.clock.minutes:g} minutes; give more "
                "--max-minutes, add --no-eval-on-start, or lower --max-eval-samples."
            )

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.clock.minutes is not None or self.save_minutes:
            self.clock.tick(args.device)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_training_stop |= self.clock.fraction() >= 1.0
        if self.save_minutes and args.save_strategy == "steps":
            control.should_save |= control.should_training_stop or self.clock.agreed - self.saved >= self.save_minutes

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.saved = self.clock.agreed

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"first_step": self.clock.first_step}}


class MinutesBar(ProgressCallback):
    """Trainer's bar, counting the minutes of a training that minutes limit."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        if state.is_world_process_zero:
            bar_format = "{l_bar}{bar}| {n:.1f} of {total:g} minutes{postfix}"
            self.training_bar = tqdm(total=self.clock.minutes, bar_format=bar_format, dynamic_ncols=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        if (bar := self.training_bar) is not None:
            bar.n = min(self.clock.agreed, bar.total)
            bar.set_postfix_str(f"step {state.global_step:,}")


class SynchroniseCentroids(TrainerCallback):
    """Moves the centroids of ``routing`` by the tokens of all processes. Transformers' own Trainer takes it by ``callbacks=``."""

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any) -> None:
        synchronise_centroids(model)

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any) -> None:
        synchronise_centroids(model)


class SetEpochCallback(TrainerCallback):
    """Sets the epoch of the sampler and of an :class:`~hf_longattn.data.batching.EpochAwareCollator`.

    When a run with several processes resumes, accelerate's loader does not set the sampler's epoch. Without this callback, the rest of a
    later epoch would have the order of the first one.
    """

    def __init__(self, collator: EpochAwareCollator | None = None) -> None:
        self.collator = collator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, train_dataloader: Any = None, **_: Any
    ) -> None:
        if self.collator is not None:
            self.collator.epoch = int(state.epoch or 0)
        sampler = getattr(train_dataloader, "batch_sampler", None)
        while sampler is not None:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(int(state.epoch or 0))
            sampler = getattr(sampler, "batch_sampler", getattr(sampler, "sampler", None))


class Processes(TrainerCallback, ExportableState):
    """Stores the number of processes in trainer_state.json, so that a checkpoint without a process's file is recognised as incomplete."""

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


class CheckBestMetric(TrainerCallback):
    """Refuses an unknown metric for the best model.

    Raises:
        OptionError: the metric is unknown.
    """

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        name = (args.metric_for_best_model or "").removeprefix("eval_")
        known = [key.removeprefix("eval_") for key in metrics or {}]
        if name and known and name not in known:
            raise OptionError(f"--metric-for-best-model must be one of {', '.join(known)}, not {name!r}.{nearest(name, known)}")


def rows_of(inputs: Mapping[str, Any]) -> int:
    """The rows of a batch; of a packed one, its documents."""
    lengths = inputs.get("lengths")
    if isinstance(lengths, Tensor):
        return len(lengths)
    return next((len(value) for value in inputs.values() if isinstance(value, Tensor) and value.dim()), 1)


def highest(logits: Any, labels: Tensor) -> Tensor:
    """Number of the highest logit, along the last axis; for ``preprocess_logits_for_metrics``."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def without_idle_step(scheduler: Any, warmup: int) -> Any:
    """A transformers schedule whose warm-up does not begin with 0, since its first step would change nothing.

    Step k of w in the warm-up has (k + 1) / w of the rate, as in torchtitan, not k / w. A schedule without warm-up is returned unchanged.
    """
    if not isinstance(scheduler, LambdaLR) or not warmup:
        return scheduler

    def raised(rate: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: min(1.0, rate(step) + 1 / warmup) if step < warmup else rate(step)

    return LambdaLR(scheduler.optimizer, [raised(rate) for rate in scheduler.lr_lambdas])


def timed_schedule(optimizer: Optimizer, clock: Clock, num_training_steps: int, warmup: float) -> LambdaLR:
    """Linear warm-up and decay over steps or time, whichever is further along. A ``warmup`` below 1 is a fraction."""
    steps = max(1, num_training_steps)

    def scale(step: int) -> float:
        done = max(step / steps, clock.fraction())
        risen = (step + 1) / max(1.0, warmup) if warmup >= 1 or warmup == 0 else max((step + 1) / steps, clock.fraction()) / warmup
        return min(1.0, risen) * max(0.0, 1.0 - done)

    return LambdaLR(optimizer, scale)
