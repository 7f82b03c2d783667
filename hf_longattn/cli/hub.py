"""`longattn push MODEL REPO` and `longattn card MODEL`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import options as flags
from .terminal import Line, say, show

Folder = Annotated[Path, typer.Argument(metavar="MODEL", help="The folder of a saved model.")]


def push(
    model: Folder,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="NAME or USER/NAME on the Hub; created if it does not exist.")],
    private: flags.Private = False,
    revision: Annotated[str | None, typer.Option(help="A branch; created if it does not exist.", show_default="main")] = None,
    commit_message: Annotated[str | None, typer.Option(help="Commit message.", show_default="Upload FOLDER")] = None,
    remote_code: flags.RemoteCode = False,
    token: flags.Token = None,
    as_json: flags.Json = False,
) -> None:
    """Upload a model to the Hub in one commit, with its card.

    Files of the repository stay if the folder does not have them. After a broken connection, run the same command again: large files that
    have arrived are not uploaded again.
    """
    from ..hub import push_model

    pushed = push_model(
        model, repo, private=private, revision=revision, commit_message=commit_message, remote_code=remote_code, token=token
    )
    cards = {"the folder's": "with the folder's card", "written": "with a card written for it"}
    commit = f"{len(pushed.files)} files in commit {pushed.commit[:12]} on {pushed.revision}"
    left_out = f"; left out: {', '.join(pushed.left_out)}" if pushed.left_out else ""
    lines = [Line(pushed.url), Line(f"{commit}; {cards.get(pushed.card, 'the repository keeps its card')}{left_out}.")]
    show(asdict(pushed), lines, as_json=as_json)


def card(
    model: Folder,
    base_model: Annotated[str | None, typer.Option(help="Hub name of the model that it was made from.")] = None,
    name: Annotated[str | None, typer.Option(help="Name or path by which the card loads it.", show_default="the folder as typed")] = None,
    results: Annotated[Path | None, typer.Option(help="Results: a JSON list of {dataset, metric, value, ...}.")] = None,
) -> None:
    """Write README.md, the model card.

    It is written from the config, the conversion report and measured results. Licence, language, data sets and tags stay as the card has
    them: edit them in the file.
    """
    from ..errors import LongAttentionError
    from ..files import read_json
    from ..hub import write_model_card

    rows = [] if results is None else read_json(results)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise LongAttentionError(f"{results} must contain a JSON list of rows with dataset, metric and value.")
    say(write_model_card(model, base_model=base_model, name=name, results=rows))
