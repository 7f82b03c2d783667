"""`longattn push MODEL REPO` and `longattn card MODEL`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as flags

if TYPE_CHECKING:
    from ..hub import PushReport


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
    from ..loading import check_token

    check_token(repo, token)
    from ..hub import push_model
    from .terminal import print_json

    report = push_model(model, repo, **flags.arguments(push_model, locals()))
    print_json(report.to_dict()) if as_json else _show(report)


def push_converted(destination: Path, repo: str, *, private: bool, token: str | None, quiet: bool) -> dict[str, Any]:
    """Push what `longattn convert` has just written; if that fails, the message tells how to retry."""
    from ..errors import HubError
    from ..hub import push_model

    try:
        report = push_model(destination, repo, private=private, token=token)
    except HubError as error:
        again = f"longattn push {shlex.quote(str(destination))} {repo}{' --private' if private else ''}"
        raise HubError(f"{error} The converted model is in {str(destination)!r}; push it with: {again}") from error
    if not quiet:
        _show(report)
    return report.to_dict()


CARDS = {
    "the folder's": "with the folder's card",
    "written": "with a card written for it",
    "the repository's": "the repository keeps its card",
}
"""Which card the repository has (:attr:`PushReport.card`), in words."""


def _show(report: PushReport) -> None:
    from .terminal import say

    left_out = f"; left out: {', '.join(report.left_out)}" if report.left_out else ""
    say(report.url)
    say(f"{len(report.files)} files in commit {report.commit[:12]} on {report.revision}; {CARDS[report.card]}{left_out}.")


def card(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The folder of a saved model.")],
    base_model: Annotated[str | None, typer.Option(help="Hub name of the model that it was made from.")] = None,
    name: Annotated[
        str | None, typer.Option(help="The name or path by which the card loads it.", show_default="the folder as given")
    ] = None,
    results: Annotated[Path | None, typer.Option(help="Results: a JSON list of {dataset, metric, value, ...}.")] = None,
    license: Annotated[str | None, typer.Option(help="License identifier, for example apache-2.0.")] = None,
    language: Annotated[str | None, typer.Option(help="Language code, for example en.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Hub name of a data set it was trained on. Repeatable.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag. Repeatable.")] = None,
) -> None:
    """Write README.md, the model card.

    It is written from the config, the conversion report and measured results.
    """
    from ..errors import LongAttentionError
    from ..files import read_json
    from ..hub import write_model_card
    from .terminal import say

    rows = []
    if results is not None:
        rows = read_json(results)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise LongAttentionError(f"{results} must contain a JSON list of rows with dataset, metric and value.")
    path = write_model_card(
        model, base_model=base_model, name=name, results=rows, license=license, language=language, datasets=dataset, tags=tag or []
    )
    say(path)
