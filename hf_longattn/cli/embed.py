"""`longattn embed MODEL DOCUMENTS --output DIR`: vectors of documents, in Parquet files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from . import options as flags


def embed(
    model: Annotated[str, flags.model_argument("A checkpoint that sentence-transformers loads, short or converted")],
    documents: Annotated[
        str, typer.Argument(metavar="DOCUMENTS", help="A .jsonl, .csv, .tsv, .parquet or .txt file, a folder or a Hub name.")
    ],
    output: Annotated[Path, typer.Option(help="The folder to write; that of a stopped run is completed.")],
    vectors: Annotated[str, typer.Option(help="What gets a vector: document, parts:8, passages:256 (tokens each) or tokens.")] = "document",
    task: Annotated[str, typer.Option(help="document, or query for the prompt that the model puts before queries.")] = "document",
    text_column: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    id_column: Annotated[str | None, typer.Option(help="The column of ids.", show_default="id, or else numbers")] = None,
    split: Annotated[str, typer.Option(help="The split, where the data have several.")] = "train",
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads.", show_default="torch's")] = None,
) -> None:
    """Embed documents into Parquet files: id, part, start and end in characters, vector.

    Type the same command again to resume an interrupted run. Under accelerate launch, processes share the files.
    """
    import torch

    from ..evaluation.embedding import embed_documents
    from .terminal import progress, say

    if threads is not None:
        torch.set_num_threads(threads)
    with progress() as tell:
        counts = embed_documents(
            model, documents, output, vectors=vectors, task=task, text_column=text_column, id_column=id_column or "", split=split,
            note=partial(tell, "embedded"),
        )  # fmt: skip
    say(f"{counts['documents']:,} documents, {counts['vectors']:,} vectors in {output}")
