"""The tasks of `longattn train`: one file in ``training/tasks/`` each. Its name is the task's name, the first line of its docstring the
summary, and its ``TASK`` the rest. Command line, scripts, recipes, documents and tests use this; tasks are imported on first use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import OptionError, UsageError, nearest
from ..names import load_module, module_names


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
    return module_names("training.tasks")


def task_summary(name: str) -> str:
    """The first line of the docstring of a task's module.

    Raises:
        UsageError, OptionError: as :func:`load_task`.
    """
    load_task(name)
    return str(load_module("training.tasks", name).__doc__).partition("\n")[0]


def evaluated_tasks() -> dict[str, str]:
    """Name of each task of `longattn evaluate` -> its ``evaluation``."""
    return {name: summary for name in task_names() if (summary := load_task(name).evaluation)}


def load_task(name: str) -> Task:
    """Import a task.

    Raises:
        UsageError: there is no such task.
        OptionError: its module has no ``TASK`` or no docstring, or the ``TASK`` does not have three classes of arguments.
    """
    if name not in task_names():
        raise UsageError(f"There is no task {name!r}; the tasks are {', '.join(task_names())}.{nearest(name, task_names())}")
    module = load_module("training.tasks", name)
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise OptionError(f"{module.__file__} has no TASK; add TASK = Task(arguments=..., train=..., result=...).")
    if not module.__doc__:
        raise OptionError(f"{module.__file__} has no docstring; its first line is the summary in the list of tasks.")
    if len(task.arguments) != 3:
        raise OptionError(
            f"The TASK of {module.__file__} has {len(task.arguments)} classes of arguments; give three: those of the model, of the data "
            "and of the training."
        )
    return task
