"""`longattn push MODEL REPO`."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as flags

if TYPE_CHECKING:
    from ..hub import PushReport

__all__ = ["push", "push_converted"]


def push(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The folder of a saved model.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="NAME or USER/NAME on the Hub; made when it does not exist.")],
    private: flags.Private = False,
    revision: Annotated[str | None, typer.Option(help="A branch; made when it does not exist.", show_default="main")] = None,
    commit_message: Annotated[str | None, typer.Option(help="Message of the commit.", show_default="Upload and the folder's name")] = None,
    remote_code: flags.RemoteCode = False,
    bundle_user_code: flags.UserCode = False,
    token: flags.Token = None,
    as_json: flags.Json = False,
) -> None:
    """Send a model to the Hub, in one commit, with its card.

    Files that the repository has and the folder has not stay. When the connection breaks, the same command goes on: large files that
    have arrived are not sent again.
    """
    flags.check_user_code(remote_code, bundle_user_code)
    from ..hub import push_model
    from .show import print_json

    report = push_model(
        model,
        repo,
        private=private,
        revision=revision,
        token=token,
        commit_message=commit_message,
        remote_code=remote_code,
        user_code=bundle_user_code,
        log=partial(typer.echo, err=True),
    )
    print_json(report.to_dict()) if as_json else _show(report)


def push_converted(destination: Path, repo: str, *, private: bool, token: str | None, quiet: bool) -> dict[str, Any]:
    """Push what `longattn convert` has just made; where that fails, the sentence says how to go on."""
    from ..errors import HubError
    from ..hub import push_model

    try:
        report = push_model(destination, repo, private=private, token=token, log=partial(typer.echo, err=True))
    except HubError as error:
        again = f"longattn push {shlex.quote(str(destination))} {repo}{' --private' if private else ''}"
        raise HubError(f"{error} The converted model is in {str(destination)!r}: {again}") from error
    if not quiet:
        _show(report)
    return report.to_dict()


def _show(report: PushReport) -> None:
    left_out = f"; left out: {', '.join(report.left_out)}" if report.left_out else ""
    typer.echo(report.url)
    typer.echo(f"{len(report.files)} files in commit {report.commit[:12]} on {report.revision}; card: {report.card}{left_out}.")
