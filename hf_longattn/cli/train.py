"""`longattn train TASK`, a command for each task of the table; scripts/train_*.py and scripts/distill_attention.py are the same.

Options are model arguments, data arguments and transformers' TrainingArguments. Of several processes
(`accelerate launch -m hf_longattn train …`), only the first one prints.
"""

from __future__ import annotations

import sys

import typer

from ..errors import MissingExtraError, check_extra, error_line
from ..tasks import task_names, tasks_named
from .terminal import say

__all__ = ["app", "train"]


def train(name: str, arguments: list[str] | None = None) -> int:
    """Run the task ``name`` with a command line, by default that of the process, and return the exit code."""
    line = sys.argv[1:] if arguments is None else arguments
    first, *others = tasks_named(name)
    try:
        for extra in () if "--help" in line else first.extras:
            check_extra(extra)  # before imports that take seconds
    except MissingExtraError as error:
        say(error_line(error), stderr=True)
        return 1
    from ..training.args import is_option_set
    from ..training.training_loop import run_training

    task = next((task for task in others if is_option_set(task.option, line)), first)
    kinds, run, result = task.load_arguments(), task.load_train(), task.load_result()
    elsewhere = [f"`longattn train {name} --{other.option} VALUE --help` lists the options of: {other.summary}" for other in others]
    description = " ".join([task.summary, *(elsewhere if task is first else [])])
    return run_training(kinds, line, description, train=run, result=result, prog=f"longattn train {name}")


app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


def _add(name: str) -> None:
    """The training's own parser reads everything after the name, ``--help`` included."""

    def command(context: typer.Context) -> None:
        raise typer.Exit(train(name, context.args))

    forwarded = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    app.command(name, help=tasks_named(name)[0].summary, context_settings=forwarded)(command)


for _name in task_names():
    _add(_name)
