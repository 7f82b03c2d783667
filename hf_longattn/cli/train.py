"""`longattn train TASK` and `longattn evaluate TASK`, with a command for each task (:mod:`hf_longattn.training.task`).

Options are model arguments, data arguments and transformers' TrainingArguments. Of several processes
(`accelerate launch -m hf_longattn train …`), only the first one prints.
"""

from __future__ import annotations

import sys
from functools import partial

import typer

from ..errors import check_extra
from ..training.task import load_task, task_names, task_summary


def train(name: str, arguments: list[str] | None = None, command: str = "train") -> int:
    """Run the task ``name`` with a command line, by default that of the process, and return the exit code."""
    task = load_task(name)
    for extra in getattr(task, "EXTRAS", ()):
        check_extra(extra)
    from ..training.run import run_task

    return run_task(task, sys.argv[1:] if arguments is None else arguments, f"longattn {command} {name}")


evaluate = partial(train, command="evaluate")


def run(context: typer.Context) -> None:
    """A task. Its own parser reads everything after its name, ``--help`` included."""
    command = context.parent.info_name if context.parent else None
    raise typer.Exit(train(str(context.info_name), context.args, str(command)))


tasks = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
for name in task_names():
    words = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    tasks.command(name, help=task_summary(name), context_settings=words)(run)
