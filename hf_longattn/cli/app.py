"""Put the commands together, and turn errors into one sentence and an exit code."""

from __future__ import annotations

import os
import sys

import typer

from ..benchmarking.app import app as bench
from . import card, convert, export, inspect, mechanisms, plan, push, revert

__all__ = ["app", "main"]

app = typer.Typer(
    name="longattn",
    help="Turn short-context checkpoints into long-context ones with an efficient attention mechanism.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
COMMANDS = (
    convert.convert,
    export.export,
    plan.plan,
    inspect.inspect,
    revert.revert,
    mechanisms.mechanisms,
    card.card,
    push.push,
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(bench, name="bench")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(arguments, standalone_mode=True)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except ValueError as error:
        from ..errors import LongAttentionError

        if not isinstance(error, LongAttentionError):
            raise
        _fail(str(error))


def _fail(sentence: str) -> None:
    print(f"Error: {' '.join(sentence.split())}", file=sys.stderr)
    raise SystemExit(1)
