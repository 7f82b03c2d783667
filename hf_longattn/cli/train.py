"""`longattn train TASK`, a command for each task (:mod:`hf_longattn.tasks`).

Options are model arguments, data arguments and transformers' TrainingArguments. Of several processes
(`accelerate launch -m hf_longattn train …`), only the first one prints.
"""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import LongAttentionError, UsageError, check_extra, error_line
from ..tasks import load_task, task_names, task_summary
from .terminal import say

__all__ = ["app", "train"]


def train(name: str, arguments: list[str] | None = None) -> int:
    """Run the task ``name`` with a command line, by default that of the process, and return the exit code."""
    from ..training.parsing import answer_early

    line, command = sys.argv[1:] if arguments is None else arguments, f"longattn train {name}"
    try:
        answer_early(name, line, task_summary(name), command)  # before imports that take seconds
        task = load_task(name)
        for extra in task.extras:
            check_extra(extra)
    except LongAttentionError as error:
        say(error_line(error), stderr=True)
        return 2 if isinstance(error, UsageError) else 1
    from ..training.training_loop import run_training

    return run_training(task, line, task_summary(name), command)


class TaskGroup(TyperGroup):
    """The tasks as commands; what is none of them is refused with their names."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of the first word.

        Raises:
            click.UsageError: there is no such task.
        """
        if not args[0].startswith("-") and not ctx.resilient_parsing:
            try:
                task_summary(args[0])
            except UsageError as error:
                ctx.fail(str(error))
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=TaskGroup, no_args_is_help=True, rich_markup_mode=None)


def _add(name: str) -> None:
    """The training's own parser reads everything after the name, ``--help`` included."""

    def command(context: typer.Context) -> None:
        raise typer.Exit(train(name, context.args))

    forwarded = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    app.command(name, help=task_summary(name), context_settings=forwarded)(command)


for _name in task_names():
    _add(_name)
