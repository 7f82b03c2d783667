"""Settings of a training run as a dataclass: from a recipe in YAML, overridden by the command line."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from hf_longattn.errors import OptionError, nearest

Settings = TypeVar("Settings")

DEFAULT_STEPS = 1000
"""Optimiser steps of a run that is given neither steps nor epochs nor minutes."""
ENDLESS = 1_000_000
"""Optimiser steps of a run that only the clock ends."""


def setting(default: Any, text: str, **more: Any) -> Any:
    """A field with its help text; a default of :class:`RunSettings` is changed with ``kw_only=True``."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text}, **more)
    return field(default=default, metadata={"help": text}, **more)


def parse_settings(kind: type[Settings], arguments: list[str], description: str) -> Settings:
    """Return the settings of a recipe (``--config``) overridden by the command line.

    Raises:
        OptionError: the recipe does not exist or holds a name that is no setting.
    """
    parser = HfArgumentParser(kind, description=description)
    parser.add_argument("--config", type=Path, help="Recipe in YAML with the names below.")
    for action in parser._actions:  # HfArgumentParser gives --no_bf16 the help of --bf16
        if action.option_strings and action.option_strings[0].startswith("--no_"):
            action.help = f"Turn --{action.dest} off, which is on by default."
    known, _ = parser.parse_known_args(arguments)
    if known.config:
        parser.set_defaults(**read_recipe(known.config, kind))
    values = vars(parser.parse_args(arguments))
    values.pop("config")
    return kind(**values)


def read_recipe(path: Path, kind: type[Any]) -> dict[str, Any]:
    """Read a YAML recipe; unknown names are refused."""
    if not path.is_file():
        raise OptionError(f"recipe {str(path)!r} does not exist; the ready ones are in configs/ of the project's repository")
    recipe = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    names = [each.name for each in fields(kind) if each.init]
    for name in recipe:
        if name not in names:
            raise OptionError(f"{path}: unknown setting {name!r}.{nearest(name, names)} --help lists all of them")
    return recipe


@dataclass
class RunSettings:
    """What every training has: a model, where to write it, and how to run."""

    model: str = setting("", "Checkpoint to start from: a folder or a Hub name, converted or short.")
    output: str = setting("", "Folder to write the trained checkpoint to.")
    _: KW_ONLY
    gradient_accumulation: int = setting(8, "Forward passes per optimiser step.")
    warmup_steps: float = setting(0.1, "Steps of rising learning rate; a number below 1 is a share of all steps, or of max_minutes.")
    weight_decay: float = setting(0.01, "AdamW's weight decay.")
    gradient_checkpointing: bool = setting(False, "Recompute activations in the backward pass: less memory, more time.")
    bf16: bool = setting(True, "Train under bfloat16 autocast.")
    seed: int = setting(0, "Decides the order of the data, and all else that is drawn.")
    threads: int = setting(0, "Processor threads of this process; 0 = torch's default.")
    logging_steps: int = setting(20, "Steps between log lines, at most; a short run logs ten times, and every run its last step.")
    save_steps: int = setting(0, "Steps between checkpoints to resume from (in OUTPUT/checkpoints); 0 = none.")
    resume: bool = setting(False, "Resume from the newest whole checkpoint in OUTPUT/checkpoints.")
    dtype: str = setting("float32", "Type of the written weights: float32, float16 or bfloat16.")
    progress: bool = setting(True, "Show a progress bar.")

    def check(self) -> None:
        """Refuse settings without a model or an output, or with a number or type that cannot be."""
        if not self.model:
            raise OptionError("no model given; say --model with a checkpoint folder or a Hub name")
        if not self.output:
            raise OptionError("no output folder given; say --output with the folder to write to")
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise OptionError(f"dtype must be float32, float16 or bfloat16, not {self.dtype!r}")
        for name in ("gradient_accumulation", "logging_steps"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, not {getattr(self, name)}")


def training_arguments(settings: Any, **own: Any) -> TrainingArguments:
    """Trainer's arguments as the settings of any run have them; ``own`` are those of this kind of run."""
    steps = settings.max_steps or (DEFAULT_STEPS if getattr(settings, "max_minutes", None) is None else ENDLESS)
    duration = {"max_steps": steps} if settings.epochs is None else {"num_train_epochs": settings.epochs}
    usual: dict[str, Any] = {
        "output_dir": str(Path(settings.output) / "checkpoints"),
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "learning_rate": settings.learning_rate,
        "warmup_steps": settings.warmup_steps,
        "weight_decay": settings.weight_decay,
        "bf16": settings.bf16,
        "use_cpu": not torch.cuda.is_available(),
        "seed": settings.seed,
        "logging_steps": settings.logging_steps,
        "save_strategy": "steps" if settings.save_steps else "no",
        "save_steps": settings.save_steps or 500,
        "save_total_limit": 2,
        "dataloader_pin_memory": False,
        "disable_tqdm": not settings.progress,
        "report_to": [],
    }
    return TrainingArguments(**{**usual, **duration, **own})
