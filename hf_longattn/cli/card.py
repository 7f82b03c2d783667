"""`longattn card MODEL`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["card"]


def card(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The folder of a saved model.")],
    base_model: Annotated[str | None, typer.Option(help="Hub name of the model it was made from.")] = None,
    name: Annotated[str | None, typer.Option(help="What a reader types to load it.", show_default="the folder as given")] = None,
    results: Annotated[Path | None, typer.Option(help="Measured rows, a JSON list of {dataset, metric, value, ...}.")] = None,
    license: Annotated[str | None, typer.Option(help="License identifier, for example apache-2.0.")] = None,
    language: Annotated[str | None, typer.Option(help="Language code, for example en.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Hub name of a data set it was trained on. Repeatable.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag. Repeatable.")] = None,
) -> None:
    """Write the model card, README.md, from the model's config, its conversion report and measured results."""
    from ..errors import LongAttentionError
    from ..hub import write_model_card
    from ..reading import read_json

    rows = []
    if results is not None:
        rows = read_json(results)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise LongAttentionError(f"{results} must hold a JSON list of rows with dataset, metric and value.")
    path = write_model_card(
        model, base_model=base_model, name=name, results=rows, license=license, language=language, datasets=dataset, tags=tag or []
    )
    typer.echo(path)
