"""`longattn train TASK` and `longattn evaluate TASK`, with a command for each task (:mod:`hf_longattn.tasks`).

Options are model arguments, data arguments and transformers' TrainingArguments. Of several processes
(`accelerate launch -m hf_longattn train …`), only the first one prints.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..errors import LongAttentionError, UsageError, check_extra, error_line
from ..tasks import evaluated_tasks, evaluation_summary, load_task, task_names, task_summary
from .terminal import say

SUMMARIES: dict[str, Callable[[str], str]] = {"train": task_summary, "evaluate": evaluation_summary}
"""Command -> the function that returns the one-sentence summary of a task."""


def train(name: str, arguments: list[str] | None = None, command: str = "train") -> int:
    """Run the task ``name`` with a command line, by default that of the process, and return the exit code."""
    from ..training.parsing import answer_early

    line, prog = sys.argv[1:] if arguments is None else arguments, f"longattn {command} {name}"
    is_evaluation = command == "evaluate"
    try:
        summary = SUMMARIES[command](name)
        answer_early(name, line, summary, prog, is_evaluation=is_evaluation)  # before imports that take seconds
        task = load_task(name)
        for extra in task.extras:
            check_extra(extra)
    except LongAttentionError as error:
        say(error_line(error), stderr=True)
        return 2 if isinstance(error, UsageError) else 1
    from ..training.evaluation import for_evaluation
    from ..training.training_loop import run_task

    return run_task(for_evaluation(task) if is_evaluation else task, line, summary, prog)


evaluate = partial(train, command="evaluate")


class TaskCommand(TyperCommand):
    """A task; its own parser reads everything after the name, ``--help`` included."""

    def invoke(self, ctx: Any) -> Any:
        raise typer.Exit(train(str(self.name), ctx.args, ctx.parent.command.name))


class TaskGroup(TyperGroup):
    """The tasks as commands. An unknown name raises an error that lists them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The tasks that the command runs."""
        return task_names() if self.name == "train" else list(evaluated_tasks())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a task.

        Raises:
            click.UsageError: there is no such task.
        """
        try:
            summary = SUMMARIES[str(self.name)](cmd_name)
        except UsageError as error:
            ctx.fail(str(error))
        settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
        return TaskCommand(cmd_name, help=summary, context_settings=settings)


app = typer.Typer(cls=TaskGroup, no_args_is_help=True, rich_markup_mode=None)
app.callback()(lambda: None)
