"""The tasks of `longattn train`: one file in ``training/tasks/`` each. Its name is the task's name, the first line of its docstring the
summary, and its ``TASK`` the rest. Command line, scripts, recipes, documents and tests use this; tasks are imported on first use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pydoc import source_synopsis
from typing import Any

from .declarations import declared, declared_class
from .errors import RegistrationError, UsageError, nearest
from .naming import load_module, module_names, module_path

PACKAGE = "training.tasks"
NO_SUMMARY = "(no summary: the file has no docstring, whose first line would stand here)"


@dataclass(frozen=True)
class Task:
    """A task of `longattn train`: the ``TASK`` of its module.

    Args:
        arguments: the classes of its model, data and training arguments.
        train: takes these arguments, trains and returns the log.
        result: formats a log for printing.
        evaluation: one sentence on the scores of `longattn evaluate`; "" if the task cannot evaluate. If it can, ``train`` with
            ``only_scores`` set in the training arguments computes the scores without training.
        extras: the package's extras that the task needs.
    """

    arguments: tuple[type[Any], type[Any], type[Any]]
    train: Callable[[Any, Any, Any], dict[str, Any]]
    result: Callable[[dict[str, Any]], str]
    evaluation: str = ""
    extras: tuple[str, ...] = ()


def task_names() -> list[str]:
    """Names of the tasks of `longattn train`, sorted."""
    return module_names(PACKAGE)


def task_summary(name: str) -> str:
    """The first line of a task's module docstring, read without importing the module.

    Raises:
        UsageError: there is no such task.
    """
    path = module_path(PACKAGE, name)
    if path is None or name not in task_names():
        raise UsageError(f"There is no task {name!r}; the tasks are {', '.join(task_names())}.{nearest(name, task_names())}")
    with path.open(encoding="utf-8") as source:
        return source_synopsis(source) or NO_SUMMARY


def evaluation_summary(name: str) -> str:
    """The ``evaluation`` of a task, read without importing the task.

    Raises:
        UsageError: there is no such task, or it evaluates nothing.
    """
    task_summary(name)
    if name not in evaluated_tasks():
        raise UsageError(f"{name} trains a model and scores none; the tasks that do are {', '.join(evaluated_tasks())}.")
    return evaluated_tasks()[name]


def evaluated_tasks() -> dict[str, str]:
    """Name of each task of `longattn evaluate` -> its ``evaluation``. Tasks without declarations are imported."""
    entries = declared()["tasks"]
    summaries = {name: entries[name]["evaluation"] if name in entries else load_task(name).evaluation for name in task_names()}
    return {name: summary for name, summary in summaries.items() if summary}


def declared_arguments(name: str) -> tuple[type[Any], type[Any], type[Any]] | None:
    """A task's three argument classes, without importing the task; ``None`` if none are declared.

    The classes have no methods, and lack the fields of transformers' classes.

    Raises:
        UsageError: there is no such task.
    """
    task_summary(name)
    if name not in declared()["tasks"]:
        return None
    model, data, training = map(declared_class, declared()["tasks"][name]["arguments"])
    return model, data, training


def load_task(name: str) -> Task:
    """Import a task.

    Raises:
        UsageError: there is no such task.
        RegistrationError: its module has no ``TASK`` or no docstring, or the ``TASK`` does not have three classes of arguments.
    """
    summary = task_summary(name)
    module = load_module("training.tasks", name)
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise RegistrationError(f"{module.__file__} has no TASK; add TASK = Task(arguments=..., train=..., result=...).")
    if summary == NO_SUMMARY:
        raise RegistrationError(f"{module.__file__} has no docstring; its first line is the summary in the list of tasks.")
    if len(task.arguments) != 3:
        raise RegistrationError(
            f"The TASK of {module.__file__} has {len(task.arguments)} classes of arguments; give three: those of the model, of the data "
            "and of the training."
        )
    return task
