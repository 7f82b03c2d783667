"""`longattn train TASK` and `longattn evaluate TASK`, with a command for each task (:mod:`hf_longattn.training.task`).

Options are model arguments, data arguments and transformers' TrainingArguments. Of several processes
(`accelerate launch -m hf_longattn train …`), only the first one prints.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..errors import LongAttentionError, UsageError, check_extra, error_line, nearest
from ..training.task import load_task, task_names, task_summary
from .terminal import say


def train(name: str, arguments: list[str] | None = None, command: str = "train") -> int:
    """Run the task ``name`` with a command line, by default that of the process, and return the exit code."""
    try:
        task = load_task(name)
        for extra in getattr(task, "EXTRAS", ()):
            check_extra(extra)
    except LongAttentionError as error:
        say(error_line(error), stderr=True)
        return 2 if isinstance(error, UsageError) else 1
    from ..training.run import run_task

    return run_task(task, sys.argv[1:] if arguments is None else arguments, f"longattn {command} {name}")


evaluate = partial(train, command="evaluate")


class TaskCommand(TyperCommand):
    """A task; its own parser reads everything after the name, ``--help`` included."""

    def invoke(self, ctx: Any) -> Any:
        raise typer.Exit(train(str(self.name), ctx.args, ctx.parent.command.name))


class TaskGroup(TyperGroup):
    """The tasks as commands. An unknown name raises an error that lists them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The tasks, which both commands run."""
        return task_names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a task, or wrong usage where there is none."""
        if cmd_name not in task_names():
            ctx.fail(f"There is no task {cmd_name!r}; the tasks are {', '.join(task_names())}.{nearest(cmd_name, task_names())}")
        settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
        return TaskCommand(cmd_name, help=task_summary(cmd_name), context_settings=settings)


app = typer.Typer(cls=TaskGroup, no_args_is_help=True, rich_markup_mode=None)
app.callback()(lambda: None)
