"""The arguments of a training: ``TrainingArguments`` with a time budget, a number of tokens per batch, and checkpoints by default."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from transformers import TrainingArguments
from transformers.hf_argparser import string_to_bool
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.utils import is_liger_kernel_available

from hf_longattn.engines.cpu.onednn import cpu_computes_bf16
from hf_longattn.errors import OptionError, flag, in_a_line, nearest
from hf_longattn.training.args import (
    DataArguments,
    ModelArguments,
    argument,
    batch_size_argument,
    check_least,
    check_positive,
    explicit_settings,
)

EPOCHS = 3.0
"""Epochs of a run without ``--max-steps``, ``--epochs`` and ``--max-minutes``."""
ENDLESS = 1_000_000
"""Optimiser steps of a run that only the clock ends."""
SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
"""Variables that `accelerate launch` sets for sharded weights."""


@dataclass
class LongTrainingArguments(TrainingArguments):
    """All of ``TrainingArguments`` with a time budget and a number of tokens per batch.

    Raises:
        OptionError: a missing or contradictory value.
    """

    _argument_group_name: ClassVar[str] = "training arguments"
    required: ClassVar[tuple[str, ...]] = ()
    """Options that a run needs besides the model, the data and the output."""
    shards: ClassVar[bool] = True
    """Whether the task runs where FSDP or DeepSpeed split the weights."""
    without_effect: ClassVar[tuple[str, ...]] = ()
    """Options of transformers that have no effect in this task and are refused."""
    only_scores: ClassVar[bool] = False
    """Whether the model is scored, and neither trained nor written."""
    evaluation_options: ClassVar[tuple[str, ...]] = (
        "output_dir", "overwrite", "per_device_eval_batch_size", "eval_accumulation_steps", "dataloader_num_workers", "bf16", "fp16",
        "use_cpu", "threads", "seed", "disable_tqdm",
    )  # fmt: skip
    """Options that `longattn evaluate` has, besides those of base classes."""

    output_dir: str | None = argument(None, "Folder for the trained model, and for its checkpoints while it trains.", ["--output"])
    num_train_epochs: float = argument(0.0, "Epochs; 0 = 3, or as many as --max-steps or --max-minutes allow.", ["--epochs"])
    learning_rate: float = argument(5e-5, "Peak learning rate.")
    per_device_train_batch_size: int = batch_size_argument(8)
    gradient_accumulation_steps: int = argument(1, "Forward passes per optimiser step.")
    seed: int = argument(42, "Seed of everything that is drawn at random.")
    max_minutes: float | None = argument(
        None, "Stop after this many minutes, as measured by the first process; the learning rate reaches zero by then. The evaluations "
        "before and during the training count, the one after it does not."
    )  # fmt: skip
    tokens_per_batch: int = argument(
        0, "Tokens of a training batch, in place of a number of rows: their sum where batches are packed, else rows × longest; 0 = off."
    )
    total_batch_size: int = argument(
        0, "Rows of an optimiser step over all processes, in place of --gradient-accumulation-steps, which follows from it; 0 = off."
    )
    eval_on_start: bool = argument(True, "Evaluate before the first step as well, to compare with.")
    resume: bool = argument(False, "Resume from the latest complete checkpoint in --output.")
    overwrite: bool = argument(False, "Replace the model, and delete the checkpoints, of an earlier run in --output.")
    threads: int = argument(0, "CPU threads of this process; 0 = PyTorch's default.")
    early_stopping_patience: int = argument(
        0, "Stop after this many evaluations without improvement (with --eval-strategy and --load-best-model-at-end); 0 = never."
    )
    bf16: bool = argument(True, "Train under bfloat16 autocast, except on a processor that has no bfloat16.")
    max_steps: int = argument(-1, "Optimiser steps; -1 = as --epochs says.")
    save_strategy: str = argument("steps", "When to write checkpoints: no, epoch, steps (see --save-steps) or best.")
    warmup_steps: float = argument(0.1, "Steps of linear warm-up; a number below 1 is a fraction of the run.")
    weight_decay: float = argument(0.01, "AdamW's weight decay.")
    logging_steps: float = argument(20, "Steps between log entries; a short run logs ten times, and every run logs its last step.")
    save_steps: float = argument(500, "Steps between checkpoints to resume from; 0 = by --save-minutes alone.")
    save_minutes: float = argument(
        15.0, "Write a checkpoint after this many minutes at the latest (with --save-strategy steps); 0 = by --save-steps alone."
    )
    save_total_limit: int | None = argument(2, "Checkpoints kept; older ones are deleted.")
    hub_strategy: str = argument("end", "When --push-to-hub uploads: end, the complete model. Checkpoints stay on the disk.")

    def __post_init__(self) -> None:
        self.explicit = explicit_settings(self)
        named = str(getattr(self, "resume_from_checkpoint", None)).lower()
        if named in ("true", "false"):  # as Trainer.train takes it
            self.resume |= named == "true"
            self.resume_from_checkpoint = None
        self.check()
        if not torch.accelerator.is_available():
            self.use_cpu = True
        if self.use_cpu:
            self.dataloader_pin_memory = False
        if self.fp16 or (self.use_cpu and not cpu_computes_bf16()):  # PyTorch's own code for bf16 takes over ten times as long as fp32
            self.bf16 = False
        if self.load_best_model_at_end and "save_strategy" not in self.explicit:  # checkpoints follow the evaluations
            self.save_strategy = str(getattr(self.eval_strategy, "value", self.eval_strategy))
        if self.load_best_model_at_end and self.eval_strategy == "steps" and "save_steps" not in self.explicit:
            self.save_steps = self.eval_steps or self.logging_steps
        if self.save_strategy == "steps" and not self.save_steps:
            self.save_strategy, self.save_steps = ("steps", ENDLESS) if self.save_minutes else ("no", self.save_steps)
        self.measures_first, self.eval_on_start = self.eval_on_start, False  # by MeasureFirst, with the scores of the task
        if self.max_minutes is not None and self.max_steps <= 0 and not self.num_train_epochs:
            self.max_steps = ENDLESS
        self.num_train_epochs = self.num_train_epochs or EPOCHS
        self.remove_unused_columns = False  # collators choose the model's inputs
        if self.total_batch_size:
            self.gradient_accumulation_steps = self._accumulation_steps()
        try:
            super().__post_init__()
        except (ValueError, ImportError, NotImplementedError) as error:
            raise OptionError(f"{in_a_line(error)}.") from error

    def check(self) -> None:
        """Refuse missing or contradictory values before anything is set up."""
        if not self.output_dir:
            raise OptionError("No output folder given; add --output with the folder to write to.")
        if self.folder.exists() and not self.folder.is_dir():
            raise OptionError(f"The output {self.output_dir!r} is a file; give a folder, which is created if it does not exist.")
        if self.resume and self.resume_from_checkpoint:
            raise OptionError("--resume and --resume-from-checkpoint name two checkpoints to start from; leave one of them out.")
        check_least(self, gradient_accumulation_steps=1, per_device_train_batch_size=1, tokens_per_batch=0, save_steps=0, save_minutes=0)
        check_least(self, threads=0, dataloader_num_workers=0, early_stopping_patience=0, total_batch_size=0)
        check_positive(self, "logging_steps")
        if self.max_steps == 0:
            raise OptionError("--max-steps 0 trains nothing; to score a model, type: longattn evaluate TASK --model MODEL --data DATA")
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise OptionError(f"--max-minutes must be above 0, not {self.max_minutes:g}; --max-steps 1 takes a single step.")
        if unused := next((name for name in self.without_effect if name in self.explicit), None):
            raise OptionError(f"{flag(unused)} has no effect in this task; leave it out.")
        self._check_surroundings()
        contradicting = [name for name in ("gradient_accumulation_steps", "tokens_per_batch") if name in self.explicit]
        if self.total_batch_size and contradicting:
            raise OptionError(
                f"--total-batch-size contradicts {flag(contradicting[0])}; leave one of them out, or give --total-batch-size 0."
            )
        if self.max_minutes is not None and str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)) != "linear":
            raise OptionError("--max-minutes requires a linear schedule; leave --lr-scheduler-type out, or give --max-steps instead.")
        if self.load_best_model_at_end and self.eval_strategy == "no":
            raise OptionError("--load-best-model-at-end requires evaluations to compare; add --eval-strategy steps, or epoch.")
        if self.prediction_loss_only:
            raise OptionError("--prediction-loss-only leaves nothing to score; leave it out, or give --max-eval-samples 1.")
        if self.early_stopping_patience and not self.load_best_model_at_end:
            raise OptionError(
                "--early-stopping-patience requires evaluations to compare; add --load-best-model-at-end --eval-strategy steps."
            )

    def _check_surroundings(self) -> None:
        """Refuse options that this machine, process or installation does not support."""
        if self.fp16 and (self.use_cpu or not torch.accelerator.is_available()):
            raise OptionError("--fp16 needs an accelerator; leave --fp16 out: on a CPU, bfloat16 autocast is the default.")
        if self.fsdp and int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise OptionError(
                "--fsdp splits the weights over several processes, and this is one; start them with accelerate launch, for which "
                "`longattn recipes fsdp2` prints a configuration, and leave --fsdp out."
            )
        sharded = [name for name in SHARDING if string_to_bool(os.environ.get(name, "false"))]
        if (sharded or self.fsdp or self.deepspeed) and not self.shards:
            raise OptionError(
                "This task does not run under FSDP or DeepSpeed; start whole copies of the model with accelerate launch --multi_gpu."
            )
        if (getattr(self.parallelism_config, "cp_size", 0) or int(os.environ.get("PARALLELISM_CONFIG_CP_SIZE", "1"))) > 1:
            raise OptionError("The sequences of a Long model cannot be split over processes; leave cp_size out.")
        if self.use_liger_kernel and not is_liger_kernel_available():
            raise OptionError("--use-liger-kernel needs the package liger-kernel, which is not installed; type pip install liger-kernel.")
        if "underflow_overflow" in self.debug:
            raise OptionError("--debug underflow_overflow cannot read masks of true and false; leave it out: a training ends at a NaN.")
        if self.hub_strategy != "end":
            raise OptionError(f"--hub-strategy must be end, not {self.hub_strategy!r}: the model is uploaded when it is complete.")
        names = [self.report_to] if isinstance(self.report_to, str) else self.report_to or []
        for name in names:
            if name in ("all", "none"):
                continue
            if name not in INTEGRATION_TO_CALLBACK:
                known = ", ".join(("all", "none", *INTEGRATION_TO_CALLBACK))
                raise OptionError(f"--report-to must be one of {known}, not {name!r}.{nearest(name, INTEGRATION_TO_CALLBACK)}")
            if name not in get_available_reporting_integrations():
                raise OptionError(f"--report-to {name} needs the package {name!r}, which is not installed; type pip install {name}.")

    def _accumulation_steps(self) -> int:
        """Forward passes per device for ``total_batch_size`` rows."""
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        devices = processes if processes > 1 or self.use_cpu else max(1, torch.accelerator.device_count())
        rows = self.per_device_train_batch_size * devices
        if self.total_batch_size % rows:
            raise OptionError(
                f"--total-batch-size {self.total_batch_size} is not a multiple of the {rows} rows that go forward at once "
                f"(--batch-size {self.per_device_train_batch_size}, devices {devices}); change one of them."
            )
        return self.total_batch_size // rows

    @property
    def folder(self) -> Path:
        """``output_dir`` as a path."""
        return Path(str(self.output_dir))


class TaskArguments(NamedTuple):
    """The arguments of one run."""

    model: ModelArguments
    data: DataArguments
    training: LongTrainingArguments

    @property
    def settings(self) -> dict[str, Any]:
        """The values that differ from their defaults, for a log or a card."""
        return {**self.model.explicit, **self.data.explicit, **self.training.explicit}

    def check(self) -> None:
        """Refuse arguments that contradict one another.

        Raises:
            DataError: there is no such file to evaluate on.
            OptionError: the output is the folder of the model.
        """
        self.data.check_files()
        folder = self.training.folder
        if folder.exists() and folder.resolve() == Path(self.model.model).resolve():
            raise OptionError(
                f"The output {self.training.output_dir!r} is the folder of --model, which would be overwritten; give another --output."
            )
