"""Model and data arguments shared by all tasks. ``training_args`` holds the training arguments.

Each task has one dataclass of each kind, next to its trainer, which ``HfArgumentParser`` fills from the command line and from a flat recipe
in YAML (``parsing``).
"""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from transformers.hf_argparser import HfArg

from hf_longattn.errors import OptionError, check_extra, flag

DTYPES = ("float32", "float16", "bfloat16")


def argument(default: Any, help: str, aliases: list[str] | None = None) -> Any:
    """A field with its help text."""
    if isinstance(default, list):
        return HfArg(default_factory=lambda: list(default), help=help, aliases=aliases)
    return HfArg(default=default, help=help, aliases=aliases)


def batch_size_argument(default: int, help: str = "Inputs per forward pass and process.") -> Any:
    """A task's field ``per_device_train_batch_size``, which is also called ``--batch-size``."""
    return argument(default, help, ["--batch-size"])


def check_choices(arguments: Any, **choices: Collection[str]) -> None:
    """Refuse fields whose values are not among their choices."""
    for name, known in choices.items():
        if (value := getattr(arguments, name)) not in known:
            raise OptionError(f"{flag(name)} must be one of {', '.join(known)}, not {value!r}.")


def check_least(arguments: Any, **minima: float) -> None:
    """Refuse numbers below their minimum. ``None`` is accepted."""
    for name, least in minima.items():
        if (value := getattr(arguments, name)) is not None and value < least:
            raise OptionError(f"{flag(name)} must be at least {least}, not {value}.")


def check_positive(arguments: Any, *names: str) -> None:
    """Refuse numbers that are not above 0. ``None`` is accepted."""
    for name in names:
        if (value := getattr(arguments, name)) is not None and value <= 0:
            raise OptionError(f"{flag(name)} must be above 0, not {value:g}.")


class CheckedArguments:
    """Arguments that record the values that were set, and refuse missing or contradictory ones."""

    explicit: dict[str, Any]
    """The values that differ from their defaults, by name."""
    training_only: ClassVar[tuple[str, ...]] = ()
    """Options that `longattn evaluate` lacks, in addition to those of base classes."""
    only_scores: ClassVar[bool] = False
    """Whether the model is only scored."""
    required: ClassVar[tuple[str, ...]] = ()
    """Options that a run needs besides the model, the data and the output."""

    def __post_init__(self) -> None:
        self.explicit = explicit_settings(self)
        self.check()

    def check(self) -> None:
        """Refuse values before anything is set up."""


@dataclass
class ModelArguments(CheckedArguments):
    """The checkpoint to start from.

    Raises:
        OptionError: a missing or contradictory value.
    """

    _argument_group_name: ClassVar[str] = "model arguments"
    training_only: ClassVar[tuple[str, ...]] = ("dtype", "use_peft", "lora_rank", "lora_alpha")

    model: str = argument("", "Checkpoint to start from: a folder or a Hub name, converted or short.")
    dtype: str = argument("float32", "Type of the saved weights: float32, float16 or bfloat16.")
    use_peft: bool = argument(
        False, "Train LoRA updates of the attention projections with peft, new heads and the mechanisms' parameters, in place of all "
        "weights. The updates are merged into the model that is written. Learning rates are some ten times higher, about 2e-4."
    )  # fmt: skip
    lora_rank: int = argument(8, "LoRA's rank.")
    lora_alpha: float = argument(16.0, "LoRA's scale: an update is multiplied by alpha / rank.")

    def check(self) -> None:
        if not self.model:
            raise OptionError("No model given; add --model with a checkpoint folder or a Hub name.")
        check_choices(self, dtype=DTYPES)
        check_least(self, lora_rank=1)
        unused = [name for name in ("lora_rank", "lora_alpha") if name in self.explicit]
        if unused and not self.use_peft:
            raise OptionError(f"{flag(unused[0])} requires --use-peft; add it, or leave {flag(unused[0])} out.")
        if self.use_peft:
            check_extra("peft")


@dataclass
class DataArguments(CheckedArguments):
    """The data of a training."""

    _argument_group_name: ClassVar[str] = "data arguments"
    training_only: ClassVar[tuple[str, ...]] = ("max_train_samples",)

    max_length: int | None = argument(None, "Tokens of an input; default: the model's maximum.")
    max_train_samples: int | None = argument(None, "Documents or rows to train on at most, in the order of --seed; default: all.")
    max_eval_samples: int | None = argument(None, "Documents or rows to evaluate on at most, in the order of --seed; default: all.")

    def __post_init__(self) -> None:
        self.scored_rows: dict[str, int] = {}  # see SampleLimits
        super().__post_init__()

    def check(self) -> None:
        check_least(self, max_length=2, max_train_samples=1, max_eval_samples=1)

    def check_files(self) -> None:
        """Refuse a missing evaluation file, before the model is loaded and the training data are tokenised."""
        from hf_longattn.data.sources import check_exists  # here, since datasets takes long to import and --help reads this file

        check_exists(getattr(self, "validation", ""))


@dataclass
class LabelledDataArguments(DataArguments):
    """Labelled data to train on and to evaluate on."""

    shape: ClassVar[str] = "a file"
    training_only: ClassVar[tuple[str, ...]] = ("validation", "validation_split")

    data: list[str] = argument(
        [],
        "Files, folders or names on the Hub, one or several: "
        "a .jsonl, .json, .csv, .tsv or .parquet file, a folder written by datasets, the name of a dataset on the Hub "
        "(NAME:SUBSET).",
    )
    split: str = argument("train", "Split to train on, if the data have several.")
    validation: str = argument("", "Data to evaluate on, all of them; default: a tenth of every source of --data, chosen by --seed.")
    validation_split: str = argument("validation", "Split of --validation, if it has several.")
    max_length: int | None = argument(None, "Tokens at which documents are cut; default: the model's maximum.")

    def check(self) -> None:
        super().check()
        if not self.data:
            raise OptionError(f"No data given; add --data with {self.shape}, a folder or a dataset's name.")


def explicit_settings(arguments: Any) -> dict[str, Any]:
    """The values that differ from their defaults, without secrets, for logs and cards."""
    settings = {}
    for field in fields(arguments):
        if field.init and not field.name.endswith("_token"):
            default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
            value = getattr(arguments, field.name)
            if value != default:
                settings[field.name] = value if isinstance(value, (bool, int, float, list, dict)) else str(value)
    return settings
