"""`longattn push MODEL REPO`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import options as flags
from .terminal import Line, show


def push(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The folder of a saved model.")],
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
    commit = f"{len(pushed.files)} files in commit {pushed.commit[:12]} on {pushed.revision}; card: {pushed.card}"
    left_out = f"; left out: {', '.join(pushed.left_out)}" if pushed.left_out else ""
    show(asdict(pushed), [Line(pushed.url), Line(f"{commit}{left_out}.")], as_json=as_json)
