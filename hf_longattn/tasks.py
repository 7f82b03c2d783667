"""The tasks of `longattn train`, each a file of ``training/tasks/``: its name is what is typed, its docstring's first line is the summary,
and its ``TASK`` has the rest. Command line, scripts, recipes, documents and tests read this; no task is imported before it is used."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pydoc import source_synopsis
from typing import Any

from .errors import RegistrationError, UsageError, nearest

PACKAGE = f"{__package__}.training.tasks"


@dataclass(frozen=True)
class Task:
    """A task of `longattn train`: the ``TASK`` of its module.

    Args:
        arguments: the classes of its model, data and training arguments.
        train: takes them, trains and returns the log.
        result: what is printed of a log.
        extras: the package's extras that it needs.
    """

    arguments: tuple[type[Any], type[Any], type[Any]]
    train: Callable[[Any, Any, Any], dict[str, Any]]
    result: Callable[[dict[str, Any]], str]
    extras: tuple[str, ...] = ()


def task_names() -> list[str]:
    """What can be typed after `longattn train`, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(_folders()) if not module.ispkg)


def task_summary(name: str) -> str:
    """A task in a sentence: the first line of its module's docstring, which is read without importing the module.

    Raises:
        UsageError: there is no such task.
    """
    path = next((path for folder in _folders() if (path := Path(folder, f"{name}.py")).is_file()), None)
    if path is None:
        raise UsageError(f"there is no task {name!r}; the tasks are {', '.join(task_names())}.{nearest(name, task_names())}")
    with path.open(encoding="utf-8") as source:
        return source_synopsis(source) or ""


def load_task(name: str) -> Task:
    """Import a task.

    Raises:
        UsageError: there is no such task.
        RegistrationError: its module has no ``TASK`` or no docstring, or the ``TASK`` does not have three classes of arguments.
    """
    summary = task_summary(name)
    module = import_module(f"{PACKAGE}.{name}")
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise RegistrationError(f"{module.__file__} has no TASK; add TASK = Task(arguments=..., train=..., result=...)")
    if not summary:
        raise RegistrationError(f"{module.__file__} has no docstring; its first line is the summary in the list of tasks")
    if len(task.arguments) != 3:
        raise RegistrationError(
            f"the TASK of {module.__file__} has {len(task.arguments)} classes of arguments; give three: those of the model, of the data "
            "and of the training"
        )
    return task


def _folders() -> list[str]:
    """Where tasks lie; read from the package where it is loaded, which would take seconds here."""
    package = sys.modules.get(PACKAGE)
    return [str(Path(__file__).parent / "training" / "tasks")] if package is None else list(package.__path__)
