"""The arguments of every task: model, data, and transformers' ``TrainingArguments`` with a few more.

``HfArgumentParser`` fills them from the command line and from recipes. A task subclasses them to add arguments or
change defaults. A missing or contradictory value raises an OptionError.
"""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments
from transformers.hf_argparser import HfArg

from ..engines.cpu.onednn import cpu_computes_bf16
from ..errors import OptionError, check_extra, flag, in_a_line


def argument(default: Any, help: str, aliases: list[str] | None = None) -> Any:
    """A dataclass field that is also a command-line flag. Every instance gets its own copy of a list ``default``."""
    if isinstance(default, list):
        return HfArg(default_factory=lambda: list(default), help=help, aliases=aliases)
    return HfArg(default=default, help=help, aliases=aliases)


batch_size_argument = partial(argument, help="Inputs per forward pass and process.", aliases=["--batch-size"])
"""Makes a task's field ``per_device_train_batch_size`` from its default. The flag has the alias ``--batch-size``."""


def check_least(arguments: Any, **minima: float) -> None:
    """Refuse numbers below their minimum.

    Arguments that are ``None`` or that the task does not have are not checked.
    """
    for name, least in minima.items():
        value = getattr(arguments, name, None)
        if value is not None and value < least:
            raise OptionError(f"{flag(name)} must be at least {least}, not {value}.")


def changed(arguments: Any) -> dict[str, Any]:
    """The values that differ from their defaults, as JSON values, for logs and model cards. Tokens are left out."""
    settings = {}
    for field in fields(arguments):
        if not field.init or field.name.endswith("_token"):
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        value = getattr(arguments, field.name)
        if value != default:
            if not isinstance(value, (bool, int, float, list, dict)):
                value = str(value)
            settings[field.name] = value
    return settings


@dataclass
class ModelArguments:
    """The checkpoint to start from."""

    _argument_group_name: ClassVar[str] = "model"

    model: str = argument("", "Checkpoint to start from: a folder or a Hub name, converted or short.")
    lora_rank: int = argument(
        0,
        "Train new heads, the mechanisms' parameters, and LoRA updates of this rank on the attention projections, "
        "which are merged into the saved model; 0 = train all weights. Learning rates are some ten times higher, "
        "about 2e-4.",
    )

    def __post_init__(self) -> None:
        if not self.model:
            raise OptionError("No model given; add --model with a checkpoint folder or a Hub name.")
        check_least(self, lora_rank=0)
        if self.lora_rank:
            check_extra("peft")


@dataclass
class DataArguments:
    """The data to train on and to evaluate on.

    Attributes:
        roles: role (the use of a column, such as "text" or "label") -> recognised column names, in order of
            preference. ``--columns`` names other columns.
        named: role -> the name of the column that ``--columns`` gives for it.
        choices: name of an argument -> the values that it accepts. "" stands for the default and is always accepted.
        only_scores: True if the model is evaluated and not trained. :func:`~hf_longattn.training.run.begin` sets it.
        scored_rows: two counts for the log. ``n`` is the number of evaluation rows, and ``trained`` the number of
            evaluation rows that are also training rows. Set when the rows are split.
    """

    _argument_group_name: ClassVar[str] = "data"
    roles: ClassVar[dict[str, tuple[str, ...]]] = {}
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}

    data: list[str] = argument(
        [],
        "Files, folders or names on the Hub (NAME:SUBSET), one or several: .jsonl, .json, .csv, .tsv, .parquet or "
        ".txt files, folders of files, folders written by datasets.",
    )
    columns: list[str] = argument(
        [], "Names of columns, ROLE=NAME, where they are not the usual ones; give a wrong role to see the roles."
    )
    split: str = argument("train", "Split to read, if the data have several.")
    validation: str = argument(
        "", "Data to evaluate on; default: a tenth of every source of --data, chosen by --seed."
    )
    max_length: int | None = argument(None, "Tokens of an input; default: the model's maximum.")
    max_train_samples: int | None = argument(None, "Rows to train on at most, in the order of --seed; default: all.")
    max_eval_samples: int | None = argument(None, "Rows to evaluate on at most, in the order of --seed; default: all.")

    def __post_init__(self) -> None:
        # imported here: datasets is slow to import, and --help reads this file
        from ..data.sources import check_exists

        if not self.data:
            raise OptionError("No data given; add --data with a file, a folder or a dataset's name.")
        check_least(self, max_length=2, max_train_samples=1, max_eval_samples=1, stride=0, max_target_length=1)
        for name, values in self.choices.items():
            value = getattr(self, name)
            if value and value not in values:
                raise OptionError(f"{flag(name)} must be one of {', '.join(values)}, not {value!r}.")
        check_exists(self.validation)
        self.named = {role: name for role, _, name in (text.partition("=") for text in self.columns)}
        unknown_roles = self.named.keys() - self.roles.keys()
        if unknown_roles or not all(self.named.values()):
            raise OptionError(
                f"--columns takes ROLE=NAME, with a role of {', '.join(self.roles) or 'none'}, not "
                f"{' '.join(self.columns)!r}."
            )
        self.only_scores = False
        self.scored_rows: dict[str, int] = {}


@dataclass
class LongTrainingArguments(TrainingArguments):
    """transformers' ``TrainingArguments`` with other defaults, a time limit, and a number of tokens per batch.

    Attributes:
        settings: the arguments that differ from their defaults.
        folder: ``output_dir`` as a ``Path``.
    """

    _argument_group_name: ClassVar[str] = "training"

    output_dir: str | None = argument(
        None, "Folder for the trained model, and for its checkpoints while it trains.", ["--output"]
    )
    num_train_epochs: float = argument(3.0, "Epochs, unless --max-steps or --max-minutes is given.", ["--epochs"])
    per_device_train_batch_size: int = batch_size_argument(8)
    per_device_eval_batch_size: int = argument(
        0, "Inputs per forward pass and process in evaluation; 0 = as --batch-size."
    )
    max_minutes: float | None = argument(
        None,
        "Stop after this many minutes, with a linear schedule that ends by then. The evaluation before the first step "
        "counts.",
    )
    tokens_per_batch: int = argument(
        0,
        "Tokens of a training batch, in place of a number of rows: their sum where batches are packed, else rows × "
        "longest; 0 = off.",
    )
    overwrite: bool = argument(False, "Replace the results of an earlier run in --output, and delete its checkpoints.")
    resume: bool = argument(False, "Resume from the latest complete checkpoint in --output.")
    do_train: bool = argument(True, "Train; if off, the model is only scored, as by `longattn evaluate`.")
    eval_on_start: bool = argument(True, "Evaluate before the first step as well, to compare with.")
    bf16: bool = argument(True, "Train under bfloat16 autocast, except on a processor that has no bfloat16.")
    warmup_steps: float = argument(0.1, "Steps of linear warm-up; a number below 1 is a fraction of the run.")
    weight_decay: float = argument(0.01, "AdamW's weight decay.")
    logging_steps: float = argument(0.05, "Steps between log entries; a number below 1 is a fraction of the run.")
    save_total_limit: int | None = argument(2, "Checkpoints kept; older ones are deleted.")
    hub_strategy: str = argument(
        "end", "When --push-to-hub uploads; only end, with the complete model. Checkpoints stay on the disk."
    )

    def __post_init__(self) -> None:
        self.settings = changed(self)
        ours: Any = self  # transformers declares these fields
        if not self.output_dir:
            raise OptionError("No output folder given; add --output with the folder to write to.")
        self.folder = Path(self.output_dir)
        check_least(
            self,
            learning_rate=0,
            weight_decay=0,
            seed=0,
            dataloader_num_workers=0,
            gradient_accumulation_steps=1,
            per_device_train_batch_size=1,
            tokens_per_batch=0,
            per_device_eval_batch_size=0,
            mini_batch_size=1,
        )
        if self.hub_strategy != "end":
            raise OptionError(
                f"--hub-strategy must be end, not {self.hub_strategy!r}: the model is uploaded when it is complete."
            )

        # Time limit
        if self.max_minutes is not None:
            if self.max_minutes <= 0:
                raise OptionError(
                    f"--max-minutes must be above 0, not {self.max_minutes:g}; --max-steps 1 takes a single step."
                )
            if self.lr_scheduler_type != "linear":
                raise OptionError(
                    "--max-minutes requires a linear schedule; leave --lr-scheduler-type out, or give --max-steps "
                    "instead."
                )
            if ours.max_steps <= 0:
                ours.max_steps = 1_000_000  # the time limit ends the run earlier
                if ours.logging_steps < 1:  # a fraction of a million steps
                    ours.logging_steps = 20

        # Defaults that depend on other arguments or on the device
        if not self.per_device_eval_batch_size:
            self.per_device_eval_batch_size = self.per_device_train_batch_size
        ours.use_cpu = ours.use_cpu or not torch.accelerator.is_available()
        if ours.use_cpu:
            ours.dataloader_pin_memory = False
        # On a processor without bfloat16 instructions, PyTorch computes bf16 ten times slower than fp32.
        if self.fp16 or (ours.use_cpu and not cpu_computes_bf16()):
            self.bf16 = False
        metric = (self.metric_for_best_model or "").removeprefix("eval_")
        if metric in ("wer", "cer", "attention_error") and getattr(self, "greater_is_better", None) is None:
            self.greater_is_better = False  # Trainer's default is True except for losses

        # Fixed settings of Trainer
        self.remove_unused_columns = False  # collators choose the model's inputs
        self.logging_nan_inf_filter = False  # NaN or infinite losses must end the training
        try:
            super().__post_init__()
        except (ValueError, ImportError, NotImplementedError) as error:
            raise OptionError(f"{in_a_line(error)}.") from error
