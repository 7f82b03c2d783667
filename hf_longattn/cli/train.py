"""The commands that run a model on data: `longattn train`, `longattn evaluate` and `longattn embed`.

Each task in :mod:`hf_longattn.training.tasks` is a command below `train` and `evaluate`. Its options are model
arguments, data arguments and transformers' TrainingArguments. If there are several processes
(`accelerate launch -m hf_longattn train …`), only the first one prints.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..errors import check_extra
from ..training.tasks import load_task, task_names, task_summary
from . import flags
from .terminal import Line, progress, show


def train(name: str, arguments: list[str] | None = None, command: str = "train") -> int:
    """Run a task, and return the exit code.

    Args:
        name: name of the task.
        arguments: the words of the command line after the task. By default, they are the process's.
        command: "train" or "evaluate", for messages.
    """
    task = load_task(name)
    for extra in getattr(task, "EXTRAS", ()):
        check_extra(extra)
    from ..training.run import run_task

    return run_task(task, sys.argv[1:] if arguments is None else arguments, f"longattn {command} {name}")


def run(context: typer.Context) -> None:
    """Run the task of a command. The task's own parser reads all words after its name, also ``--help``."""
    assert context.parent is not None
    raise typer.Exit(train(str(context.info_name), context.args, str(context.parent.info_name)))


tasks = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
for name in task_names():
    words = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    tasks.command(name, help=task_summary(name), context_settings=words)(run)


def embed(
    model: Annotated[str, flags.model_argument("A checkpoint that sentence-transformers loads, short or converted")],
    documents: Annotated[
        str,
        typer.Argument(
            metavar="DOCUMENTS", help="A .jsonl, .csv, .tsv, .parquet or .txt file, a folder or a Hub name."
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="The folder to write; that of a stopped run with the same settings is completed.")
    ],
    vectors: Annotated[
        str, typer.Option(help="What gets a vector: document, parts:8, passages:256 (tokens each) or tokens.")
    ] = "document",
    task: Annotated[
        str, typer.Option(help="document, or query for the prompt that the model puts before queries.")
    ] = "document",
    text_column: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    id_column: Annotated[
        str | None, typer.Option(help="The column of ids.", show_default="id, else names of files or numbers")
    ] = None,
    split: Annotated[str, typer.Option(help="The split, where the data have several.")] = "train",
) -> None:
    """Embed documents into Parquet files: id, part, start and end in characters, vector.

    Type the same command again to resume an interrupted run, or to embed corrected texts anew. Under accelerate
    launch, processes share the files.
    """
    from ..evaluation.embedding import embed_documents

    with progress() as tell:
        counts = embed_documents(
            model,
            documents,
            output,
            vectors=vectors,
            task=task,
            text_column=text_column,
            id_column=id_column or "",
            split=split,
            note=partial(tell, "embedded"),
        )
    show({}, [Line(f"{counts['documents']:,} documents, {counts['vectors']:,} vectors in {output}")])
