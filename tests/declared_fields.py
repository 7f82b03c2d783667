"""Prints what the files of tasks and mechanisms declare, in a process that imports none of them: ``python -m tests.declared_fields``."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
import typing
from typing import Any

from hf_longattn.declarations import UndeclaredError, member_of_class
from hf_longattn.naming import module_names
from hf_longattn.tasks import declared_arguments, evaluated_tasks, task_names, task_summary
from hf_longattn.training.parsing import answer_early


def describe(kind: type[Any], names: list[str] | None = None) -> dict[str, list[str]]:
    """Name of every field -> its type, default and metadata; of ``names`` only, if these are given."""
    hints = typing.get_type_hints(kind)
    entries = [entry for entry in dataclasses.fields(kind) if names is None or entry.name in names]
    return {entry.name: [str(hints[entry.name]), repr(_default(entry)), repr(dict(entry.metadata))] for entry in entries}


def _default(entry: dataclasses.Field[Any]) -> Any:
    return entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()


def short_help(task: str, command: str = "train") -> str:
    """What ``longattn train TASK --help`` or ``longattn evaluate TASK --help`` prints."""
    page, is_evaluation = io.StringIO(), command == "evaluate"
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        answer_early(task, ["--help"], task_summary(task), f"longattn {command} {task}", is_evaluation=is_evaluation)
    return page.getvalue()


def declared() -> dict[str, Any]:
    """What is known of every task and mechanism without importing it; ``None`` where that is nothing."""
    mechanisms: dict[str, Any] = {}
    for name in module_names("mechanisms"):
        try:
            options_type = member_of_class(f"hf_longattn.mechanisms.{name}", "options_type")
            mechanisms[name] = [dataclasses.astuple(info) for info in options_type.infos()]
        except UndeclaredError:
            mechanisms[name] = None
    tasks = {name: [[kind.__name__, describe(kind)] for kind in declared_arguments(name)] for name in task_names()}
    pages = {name: short_help(name) for name in task_names()}
    evaluations = {name: short_help(name, "evaluate") for name in evaluated_tasks()}
    return {"tasks": tasks, "help": pages, "evaluations": evaluations, "mechanisms": mechanisms, "torch": "torch" in sys.modules}


if __name__ == "__main__":
    print(json.dumps(declared(), default=str))
