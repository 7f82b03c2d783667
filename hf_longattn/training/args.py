"""What the arguments of all trainings share, as in transformers' examples: model arguments, data arguments and ``TrainingArguments``.

Each task has one dataclass of each kind, beside its trainer, which ``HfArgumentParser`` fills from the command line and from a flat recipe
in YAML. Every option of ``TrainingArguments`` is available; only defaults differ where long inputs need others.
"""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

import argparse
import dataclasses
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn, TypeVar, get_args, get_origin

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import HfArg, string_to_bool
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.utils import is_liger_kernel_available

from hf_longattn.errors import LongAttentionError, OptionError, UsageError, check_extra, nearest
from hf_longattn.recipes import read_recipe, recipe_names

Model = TypeVar("Model", bound="ModelArguments")
Data = TypeVar("Data", bound="DataArguments")
Training = TypeVar("Training", bound="LongTrainingArguments")

EPOCHS = 3.0
"""Passes over the data of a run that is given neither steps nor epochs nor minutes."""
ENDLESS = 1_000_000
"""Optimiser steps of a run that only the clock ends."""
DTYPES = ("float32", "float16", "bfloat16")
SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
"""What `accelerate launch` sets where weights are split over processes."""
KINDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "a string", string_to_bool: "true or false"}
"""What the types of options are called in a message."""


def argument(default: Any, help: str, aliases: list[str] | None = None) -> Any:
    """A field with its help text."""
    if isinstance(default, list):
        return HfArg(default_factory=lambda: list(default), help=help, aliases=aliases)
    return HfArg(default=default, help=help, aliases=aliases)


class CheckedArguments:
    """Arguments that remember which of them were given, and refuse values that are missing or contradict one another."""

    given: dict[str, Any]

    def __post_init__(self) -> None:
        self.given = given(self)
        self.check()

    def check(self) -> None:
        """Refuse values before anything is set up."""


@dataclass
class ModelArguments(CheckedArguments):
    """What a training starts from.

    Raises:
        OptionError: a missing or contradictory value.
    """

    _argument_group_name: ClassVar[str] = "model arguments"

    model: str = argument("", "Checkpoint to start from: a folder or a Hub name, converted or short.")
    dtype: str = argument("float32", "Type of the saved weights: float32, float16 or bfloat16.")
    use_peft: bool = argument(
        False, "Train LoRA updates of the attention projections with peft, beside new heads and the mechanisms' parameters, in place of "
        "all weights; the model that is written has them merged. Learning rates are some ten times higher, about 2e-4."
    )  # fmt: skip
    lora_rank: int = argument(8, "LoRA's rank.")
    lora_alpha: float = argument(16.0, "LoRA's scale: an update is multiplied by alpha / rank.")

    def check(self) -> None:
        if not self.model:
            raise OptionError("no model given; add --model with a checkpoint folder or a Hub name")
        if self.dtype not in DTYPES:
            raise OptionError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.lora_rank < 1:
            raise OptionError(f"lora_rank must be at least 1, not {self.lora_rank}")
        unused = [name for name in ("lora_rank", "lora_alpha") if name in self.given]
        if unused and not self.use_peft:
            raise OptionError(f"{unused[0]} is of LoRA; add --use_peft, or leave it out")
        if self.use_peft:
            check_extra("train", "peft")


@dataclass
class DataArguments(CheckedArguments):
    """What every training reads."""

    _argument_group_name: ClassVar[str] = "data arguments"
    hub_task: ClassVar[str] = "other"
    """The task's name on the Hub, for the card's metadata."""

    max_length: int | None = argument(None, "Tokens of a training input; default: the model's maximum.")
    max_train_samples: int | None = argument(None, "Documents or rows to train on at most, in the order of --seed; default: all.")
    max_eval_samples: int | None = argument(None, "Documents or rows to evaluate on at most, in the order of --seed; default: all.")

    def check(self) -> None:
        for name, least in (("max_length", 2), ("max_train_samples", 1), ("max_eval_samples", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise OptionError(f"{name} must be at least {least}, not {value}")


@dataclass
class LongTrainingArguments(TrainingArguments):
    """All of ``TrainingArguments`` with a time budget and a number of tokens per batch.

    Raises:
        OptionError: a missing or contradictory value.
    """

    _argument_group_name: ClassVar[str] = "training arguments"
    shards: ClassVar[bool] = True
    """Whether the task runs where FSDP or DeepSpeed split the weights."""
    without_effect: ClassVar[tuple[str, ...]] = ()
    """Options of transformers that the task's own loss or model does not have, and that are refused."""

    output_dir: str | None = argument(None, "Folder for the trained model, and for its checkpoints while it trains.", ["--output"])
    num_train_epochs: float = argument(
        0.0, "Passes over the data; 0 = 3 passes, or as many as max_steps or max_minutes allow.", ["--epochs"]
    )
    max_minutes: float | None = argument(
        None, "Stop after this many minutes, as measured by the first process; the learning rate reaches zero by then. The evaluations "
        "before and during the training count, the one after it does not."
    )  # fmt: skip
    tokens_per_batch: int = argument(
        0, "Tokens of a training batch, in place of a number of rows: in all where batches are packed, else rows × longest; 0 = off."
    )
    total_batch_size: int = argument(
        0, "Rows of an optimiser step over all processes, in place of gradient_accumulation_steps, which follows from it; 0 = off."
    )
    eval_before_training: bool = argument(True, "Evaluate before the first step as well, to compare with.")
    resume: bool = argument(False, "Resume from the latest checkpoint in output_dir that is complete.")
    overwrite: bool = argument(False, "Replace the model, and delete the checkpoints, of an earlier run in output_dir.")
    threads: int = argument(0, "CPU threads of this process; 0 = PyTorch's default.")
    early_stopping_patience: int = argument(
        0, "Stop after this many evaluations without improvement (with eval_strategy and load_best_model_at_end); 0 = never."
    )
    bf16: bool = argument(True, "Train under bfloat16 autocast.")
    max_steps: int = argument(-1, "Optimiser steps; -1 = as num_train_epochs says.")
    save_strategy: str = argument("steps", "When to write checkpoints: no, epoch, steps (see save_steps) or best.")
    warmup_steps: float = argument(0.1, "Steps of linear warm-up; a number below 1 is a fraction of the run.")
    weight_decay: float = argument(0.01, "AdamW's weight decay.")
    logging_steps: float = argument(20, "Steps between log entries; a short run logs ten times, and every run logs its last step.")
    save_steps: float = argument(500, "Steps between checkpoints to resume from; 0 = by save_minutes alone.")
    save_minutes: float = argument(
        15.0, "Minutes after which a checkpoint is written where save_steps take longer (with save_strategy steps); 0 = by steps alone."
    )
    save_total_limit: int | None = argument(2, "Checkpoints kept; older ones are deleted.")
    hub_strategy: str = argument("end", "When push_to_hub uploads: end, the complete model. Checkpoints stay on the disk.")

    def __post_init__(self) -> None:
        self.given = given(self)
        named = str(getattr(self, "resume_from_checkpoint", None)).lower()
        if named in ("true", "false"):  # as Trainer.train takes it
            self.resume |= named == "true"
            self.resume_from_checkpoint = None
        self.check()
        if not torch.accelerator.is_available():
            self.use_cpu = True
        if self.use_cpu:
            self.dataloader_pin_memory = False
        if self.fp16:
            self.bf16 = False
        self._set_checkpoints()
        if self.max_minutes is not None and self.max_steps <= 0 and not self.num_train_epochs:
            self.max_steps = ENDLESS
        self.num_train_epochs = self.num_train_epochs or EPOCHS
        if self.total_batch_size:
            self.gradient_accumulation_steps = self._passes_per_step()
        try:
            super().__post_init__()
        except (ValueError, ImportError, NotImplementedError) as error:
            raise OptionError(" ".join(str(error).split())) from error

    def check(self) -> None:
        """Refuse values that are missing or contradict one another, before anything is set up."""
        if not self.output_dir:
            raise OptionError("no output folder given; add --output with the folder to write to")
        if self.folder.exists() and not self.folder.is_dir():
            raise OptionError(f"the output {self.output_dir!r} is a file; give a folder, which is created if it does not exist")
        for name in ("gradient_accumulation_steps", "per_device_train_batch_size", "logging_steps"):
            if getattr(self, name) <= 0:
                raise OptionError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("tokens_per_batch", "save_steps", "save_minutes", "threads", "dataloader_num_workers", "early_stopping_patience"):
            if getattr(self, name) < 0:
                raise OptionError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise OptionError(f"max_minutes must be above 0, not {self.max_minutes:g}; --max_steps 1 takes a single step")
        if unused := next((name for name in self.without_effect if name in self.given), None):
            raise OptionError(f"{unused} has no effect in this task; leave it out")
        self._check_surroundings()
        if self.total_batch_size < 0:
            raise OptionError(f"total_batch_size must be at least 1, or 0 to leave it out, not {self.total_batch_size}")
        if both := [name for name in ("gradient_accumulation_steps", "tokens_per_batch") if self.total_batch_size and name in self.given]:
            raise OptionError(f"total_batch_size and {both[0]} contradict each other; leave one out, or give --total_batch_size 0")
        if self.max_minutes is not None and str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)) != "linear":
            raise OptionError("max_minutes has a linear schedule only; leave --lr_scheduler_type out, or give --max_steps instead")
        if self.load_best_model_at_end and self.eval_strategy == "no":
            raise OptionError("load_best_model_at_end needs evaluations to compare; add --eval_strategy steps, or epoch")
        if self.prediction_loss_only:
            raise OptionError("prediction_loss_only leaves nothing to score; leave it out, or give --max_eval_samples 1")
        if self.early_stopping_patience and not self.load_best_model_at_end:
            raise OptionError("early_stopping_patience needs evaluations to compare; add --load_best_model_at_end --eval_strategy steps")

    def _check_surroundings(self) -> None:
        """Refuse what this machine, this process or what is installed cannot do."""
        if self.fp16 and (self.use_cpu or not torch.accelerator.is_available()):
            raise OptionError("fp16 needs an accelerator; leave --fp16 out: on a CPU, bfloat16 autocast is the default")
        if self.fsdp and int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise OptionError(
                "fsdp splits the weights over several processes, and this is one; start them with accelerate launch, for which "
                "`longattn recipes fsdp2` prints a configuration, and leave --fsdp out"
            )
        sharded = [name for name in SHARDING if string_to_bool(os.environ.get(name, "false"))]
        if (sharded or self.fsdp or self.deepspeed) and not self.shards:
            raise OptionError(
                "this task does not run under FSDP or DeepSpeed; start whole copies of the model with accelerate launch --multi_gpu"
            )
        if self.use_liger_kernel and not is_liger_kernel_available():
            raise OptionError("use_liger_kernel needs the package liger-kernel, which is not installed; type pip install liger-kernel")
        if "underflow_overflow" in self.debug:
            raise OptionError("debug underflow_overflow cannot read masks of true and false; give --logging_nan_inf_filter False")
        if self.hub_strategy != "end":
            raise OptionError(f"hub_strategy must be end, not {self.hub_strategy!r}: the model is uploaded when it is complete")
        names = [self.report_to] if isinstance(self.report_to, str) else self.report_to or []
        for name in names:
            if name in ("all", "none"):
                continue
            if name not in INTEGRATION_TO_CALLBACK:
                known = ", ".join(("all", "none", *INTEGRATION_TO_CALLBACK))
                raise OptionError(f"report_to must be one of {known}, not {name!r}.{nearest(name, INTEGRATION_TO_CALLBACK)}")
            if name not in get_available_reporting_integrations():
                raise OptionError(f"report_to {name} needs the package {name!r}, which is not installed; type pip install {name}")

    def _set_checkpoints(self) -> None:
        """Checkpoints by default, at the steps of evaluations where the best model is to be loaded."""
        if self.load_best_model_at_end and "save_strategy" not in self.given:
            self.save_strategy = str(getattr(self.eval_strategy, "value", self.eval_strategy))
        if self.load_best_model_at_end and self.eval_strategy == "steps" and "save_steps" not in self.given:
            self.save_steps = self.eval_steps or self.logging_steps
        if self.save_strategy == "steps" and not self.save_steps:
            self.save_strategy, self.save_steps = ("steps", ENDLESS) if self.save_minutes else ("no", self.save_steps)

    def _passes_per_step(self) -> int:
        """How often every device goes forward for ``total_batch_size`` rows; devices that share a sequence count once."""
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        shares = getattr(self.parallelism_config, "cp_size", 0) or int(os.environ.get("PARALLELISM_CONFIG_CP_SIZE", "1"))
        devices = max(1, processes // shares) if processes > 1 or self.use_cpu else max(1, torch.accelerator.device_count())
        rows = self.per_device_train_batch_size * devices
        if self.total_batch_size % rows:
            raise OptionError(
                f"total_batch_size {self.total_batch_size} is no multiple of the {rows} rows that go forward at once "
                f"(per_device_train_batch_size {self.per_device_train_batch_size}, devices {devices}); change one of them"
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
        """The values that were given, for a log or a card."""
        return {**self.model.given, **self.data.given, **self.training.given}

    def check(self) -> None:
        """Refuse arguments that contradict one another.

        Raises:
            OptionError: the output is the folder of the model.
        """
        folder = self.training.folder
        if folder.exists() and folder.resolve() == Path(self.model.model).resolve():
            raise OptionError(
                f"the output {self.training.output_dir!r} is the folder of --model, which would be overwritten; give another --output"
            )


@dataclass
class LabelledDataArguments(DataArguments):
    """Labelled data to train on and to evaluate on."""

    shape: ClassVar[str] = "a file"

    data: list[str] = argument(
        [],
        "One or several of: a .jsonl, .json, .csv, .tsv or .parquet file, a folder written by datasets, the name of a dataset on the Hub "
        "(NAME:SUBSET).",
    )
    split: str = argument("train", "Split to train on, if the data have several.")
    validation: str = argument("", "Data to evaluate on, all of them; default: a tenth of every source of --data, chosen by --seed.")
    validation_split: str = argument("validation", "Split of --validation, if it has several.")
    max_length: int | None = argument(None, "Tokens at which documents are cut; default: the model's maximum.")

    def check(self) -> None:
        super().check()
        if not self.data:
            raise OptionError(f"no data given; add --data with {self.shape}, a folder or a dataset's name")


def build_arguments(kinds: tuple[type[Model], type[Data], type[Training]], **values: Any) -> tuple[Model, Data, Training]:
    """Model, data and training arguments from values by name.

    Raises:
        TypeError: a name that none of the three has.
    """
    parts: list[dict[str, Any]] = []
    for kind in kinds:
        names = {each.name for each in fields(kind) if each.init}
        parts.append({name: values.pop(name) for name in list(values) if name in names})
    if values:
        raise TypeError(f"{', '.join(kind.__name__ for kind in kinds)} have no {', '.join(values)}")
    return kinds[0](**parts[0]), kinds[1](**parts[1]), kinds[2](**parts[2])


def given(arguments: Any) -> dict[str, Any]:
    """The values that differ from their defaults, without secrets: what a log or card says about a run."""
    found = {}
    for each in fields(arguments):
        if each.init and not each.name.endswith("_token"):
            usual = each.default_factory() if each.default_factory is not dataclasses.MISSING else each.default
            value = getattr(arguments, each.name)
            if value != usual:
                found[each.name] = value if isinstance(value, (bool, int, float, list, dict)) else str(value)
    return found


class TaskParser(HfArgumentParser):
    """transformers' parser with one sentence for what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse.

        Raises:
            UsageError: always.
        """
        named = re.fullmatch(r"argument (--\w+)\S*: (.*)", message, re.DOTALL)
        raise UsageError(f"{named[1]}: {named[2]}" if named else message)

    def parse(self, line: list[str]) -> dict[str, Any]:
        """The values of a command line by the names of their fields.

        Raises:
            UsageError: an unknown option, or a value of the wrong kind.
        """
        known, unknown = self.parse_known_args(line)
        flags = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        if flags:
            choices = [flag for action in self._actions for flag in action.option_strings]
            raise UsageError(f"there is no option {flags[0]}; {self.prog} --help lists all.{nearest(flags[0], choices)}")
        if unknown:
            raise UsageError(f"unexpected argument {unknown[0]!r}; values follow their option, as in --model MODEL")
        return vars(known)


def task_parser(kinds: tuple[type[Any], ...], description: str, prog: str | None = None) -> TaskParser:
    """The parser of a task's command line."""
    read = next((f" --{each.name} {each.name.upper()}" for each in fields(kinds[1]) if each.name in ("data", "text", "tasks")), "")
    usage = f"%(prog)s --model MODEL{read} --output FOLDER [OPTION ...]"
    parser = TaskParser(kinds, description=description, usage=usage, prog=prog)
    command = (prog or "").removeprefix("longattn ")
    parser.add_argument("--config", help=f"Recipe with the names below: a YAML file, or one of {recipe_names(command) or 'your own'}.")
    return parser


def parse_arguments(
    kinds: tuple[type[Model], type[Data], type[Training]], arguments: list[str], description: str, prog: str | None = None
) -> tuple[Model, Data, Training]:
    """Return the arguments of a recipe (``--config``), overridden by the command line.

    Raises:
        LongAttentionError: the recipe does not exist or has an unknown name, or a value is refused.
    """
    command, parser = (prog or "").removeprefix("longattn "), task_parser(kinds, description, prog)
    for action in parser._actions:  # HfArgumentParser gives --no_bf16 the help of --bf16
        if action.option_strings and action.option_strings[0].startswith("--no_"):
            action.help = f"Turn --{action.dest} off, which is on by default."
    inherited = {each.name for each in fields(TrainingArguments)}
    for group in parser._action_groups:
        group._group_actions.sort(key=lambda action: action.dest in inherited)  # the help lists ours first
    usual = parser.parse([])  # HfArgumentParser's defaults of `debug` and of another option are not TrainingArguments'
    known, _ = parser.parse_known_args(arguments)
    if known.config:
        parser.set_defaults(**_defaults(parser, known.config, command))
    values = parser.parse(arguments)
    values.pop("config")
    return build_arguments(kinds, **{name: value for name, value in values.items() if value != usual[name]})


def _defaults(parser: HfArgumentParser, recipe: str, command: str) -> dict[str, Any]:
    """A recipe's values by the fields' names; it may use every name of the command line, and one value where there is a list."""
    options = {option.strip("-").replace("-", "_"): action for action in parser._actions for option in action.option_strings}
    options = {name: action for name, action in options.items() if action.dest not in ("help", "config") and not name.startswith("no_")}
    found: dict[str, Any] = {}
    for name, value in read_recipe(recipe, options, command).items():
        action = options[name]
        if action.dest in found:
            raise OptionError(f"the recipe {recipe} sets {action.dest!r} twice, under two names; leave one of them out")
        try:
            found[action.dest] = _typed(action, value)
        except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
            kind = KINDS.get(action.type, f"a {getattr(action.type, '__name__', 'string')}")
            wanted = f"one of {', '.join(map(str, action.choices))}" if action.choices else kind
            raise OptionError(f"the recipe {recipe} sets {name!r} to {value!r}; it must be {wanted}") from error
    return found


def _typed(action: argparse.Action, value: Any) -> Any:
    """A recipe's value in the type that the command line gives it, since argparse converts texts only.

    Raises:
        TypeError, ValueError, argparse.ArgumentTypeError: it is of another type.
    """
    if value is None and action.default is None:
        return None
    if action.nargs == "+":
        return [_single(action, one) for one in (value if isinstance(value, list) else [value])]
    if isinstance(value, (dict, list)):  # lr_scheduler_kwargs, fsdp_config, report_to …, which are JSON texts on the command line
        kinds = get_args(TrainingArguments.__annotations__.get(action.dest))
        if not any((get_origin(kind) or kind) is type(value) for kind in kinds):
            raise TypeError
        return value
    return _single(action, value)


def _single(action: argparse.Action, value: Any) -> Any:
    if value is False and action.type is not string_to_bool:
        value = "no"  # as in `eval_strategy: no`, which YAML reads as false
    if value is None or isinstance(value, (dict, list)) or (value is True and action.type is str):
        raise TypeError
    typed = action.type(str(value)) if callable(action.type) else value
    if action.choices and typed not in action.choices:
        raise ValueError
    return value if typed == value and not isinstance(typed, bool) else typed


def is_option_set(name: str, arguments: list[str]) -> bool:
    """Whether a command line or its recipe gives this setting."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}", nargs="?", const="")
    parser.add_argument("--config", nargs="?")
    known, _ = parser.parse_known_args(arguments)
    if getattr(known, name) is not None or not known.config:
        return getattr(known, name) is not None
    try:
        return name in read_recipe(known.config)
    except LongAttentionError:  # told where the recipe is parsed
        return False
