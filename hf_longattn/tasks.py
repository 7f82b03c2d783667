"""The tasks of `longattn train`, each a file of ``training/tasks/``: its name is what is typed, its docstring's first line is the summary,
and its ``TASK`` has the rest. Command line, scripts, recipes, documents and tests read this; no task is imported before it is used."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pydoc import source_synopsis
from typing import Any

from .declarations import UndeclaredError, keyword_of
from .errors import RegistrationError, UsageError, nearest
from .naming import load_module, module_names, module_path

PACKAGE = "training.tasks"
NO_SUMMARY = "(no summary: the file has no docstring, whose first line would stand here)"


@dataclass(frozen=True)
class Task:
    """A task of `longattn train`: the ``TASK`` of its module.

    Args:
        arguments: the classes of its model, data and training arguments.
        train: takes them, trains and returns the log.
        result: what is printed of a log.
        evaluation: what `longattn evaluate` scores by it, in a sentence; "" = nothing. ``train`` then scores where the arguments say
            ``only_scores``.
        extras: the package's extras that it needs.
    """

    arguments: tuple[type[Any], type[Any], type[Any]]
    train: Callable[[Any, Any, Any], dict[str, Any]]
    result: Callable[[dict[str, Any]], str]
    evaluation: str = ""
    extras: tuple[str, ...] = ()


def task_names() -> list[str]:
    """What can be typed after `longattn train`, sorted."""
    return module_names(PACKAGE)


def task_summary(name: str) -> str:
    """A task in a sentence: the first line of its module's docstring, which is read without importing the module.

    Raises:
        UsageError: there is no such task.
    """
    path = module_path(PACKAGE, name)
    if path is None or name not in task_names():
        raise UsageError(f"there is no task {name!r}; the tasks are {', '.join(task_names())}.{nearest(name, task_names())}")
    with path.open(encoding="utf-8") as source:
        return source_synopsis(source) or NO_SUMMARY


def evaluation_summary(name: str) -> str:
    """The ``evaluation`` of a task, which is read without importing the task.

    Raises:
        UsageError: there is no such task, or it evaluates nothing.
    """
    task_summary(name)
    if name not in evaluated_tasks():
        raise UsageError(f"{name} trains a model and scores none; the tasks that do are {', '.join(evaluated_tasks())}")
    return evaluated_tasks()[name]


def evaluated_tasks() -> dict[str, str]:
    """What can be typed after `longattn evaluate`, and the ``evaluation`` of each."""
    summaries = {}
    for name in task_names():
        with suppress(UndeclaredError):
            summaries[name] = keyword_of(f"{__package__}.{PACKAGE}.{name}", "TASK", "evaluation")
    return summaries


def declared_arguments(name: str) -> tuple[type[Any], type[Any], type[Any]]:
    """A task's classes of arguments as its files declare them, without methods and what they inherit from transformers, and without
    importing the task.

    Raises:
        UsageError: there is no such task.
        UndeclaredError: they cannot be known without importing it.
    """
    task_summary(name)
    arguments = keyword_of(f"{__package__}.{PACKAGE}.{name}", "TASK", "arguments")
    if len(arguments) != 3:
        raise UndeclaredError(f"the TASK of {name} has {len(arguments)} classes of arguments")
    return arguments


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
        raise RegistrationError(f"{module.__file__} has no TASK; add TASK = Task(arguments=..., train=..., result=...)")
    if summary == NO_SUMMARY:
        raise RegistrationError(f"{module.__file__} has no docstring; its first line is the summary in the list of tasks")
    if len(task.arguments) != 3:
        raise RegistrationError(
            f"the TASK of {module.__file__} has {len(task.arguments)} classes of arguments; give three: those of the model, of the data "
            "and of the training"
        )
    return task
