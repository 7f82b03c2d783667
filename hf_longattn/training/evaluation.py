"""The arguments of `longattn evaluate`: a task's arguments without the options of training."""

from __future__ import annotations

import dataclasses
from typing import Any

from hf_longattn.training.args import argument
from hf_longattn.training.task import Task

Kinds = tuple[type[Any], type[Any], type[Any]]
OPTIONS = "evaluation_options"
"""The attribute of a class of arguments that lists the options of `longattn evaluate`."""
REWORDED: dict[str, tuple[Any, Any]] = {
    "model": (str, argument("", "Checkpoint to score: a folder or a Hub name, with its own head.")),
    "split": (str, argument("validation", "Split to score, if the data have several.")),
    "tasks": (list[str], argument(
        [], "One or several NAME=KIND:DATA; NAME and KIND (classify, tokens, qa, images or audio) are of a head of the checkpoint, for "
        "example topic=classify:test.csv."
    )),
    "output_dir": (str, argument(".", "Folder for scores.json and predictions, by default the current one.", ["--output"])),
    "overwrite": (bool, argument(False, "Replace the scores of an earlier evaluation in --output.")),
    "bf16": (bool, argument(True, "Score under bfloat16 autocast, except on a processor that has no bfloat16.")),
}  # fmt: skip
"""Options with another meaning than in training -> their type and field."""


def for_evaluation(task: Task) -> Task:
    """A task with the arguments of `longattn evaluate`."""
    return dataclasses.replace(task, arguments=evaluation_arguments(task.arguments))


def evaluation_arguments(kinds: Kinds) -> Kinds:
    """The classes of a task's arguments as `longattn evaluate` takes them."""
    model, data, training = kinds
    return evaluation_class(model), evaluation_class(data), evaluation_class(training)


def training_options(kind: type[Any]) -> set[str]:
    """The options of a class of arguments that only a training has."""
    hidden, listed = ({name for base in kind.__mro__ for name in vars(base).get(names, ())} for names in ("training_only", OPTIONS))
    return hidden | {field.name for field in dataclasses.fields(kind)} - listed if listed else hidden


def evaluation_class(kind: type[Any]) -> type[Any]:
    """A class of arguments as `longattn evaluate` takes it.

    It has the same fields. Options of training are fixed at their defaults.
    """
    fields: list[Any] = []
    hidden = training_options(kind)
    for entry in dataclasses.fields(kind):
        if entry.name in hidden:
            default: Any = {"default": entry.default, "default_factory": entry.default_factory}
            fields.append((entry.name, Any, dataclasses.field(**default, init=False)))
        elif entry.name == "per_device_eval_batch_size":
            fields.append((entry.name, int, argument(entry.default, entry.metadata["help"], ["--batch-size"])))
        elif entry.name in REWORDED:
            fields.append((entry.name, *REWORDED[entry.name]))
    title = kind._argument_group_name.replace("training", "evaluation")
    return dataclasses.make_dataclass(kind.__name__, fields, bases=(kind,), namespace={"only_scores": True, "_argument_group_name": title})
