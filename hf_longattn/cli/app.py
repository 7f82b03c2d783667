"""The program `longattn` with all its commands. An error becomes one sentence and an exit code."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..errors import LongAttentionError, UsageError, error_line, shortened
from .checkpoints import compress, convert, export, plan, push, search
from .inspect import inspect, mechanisms, recipes
from .train import embed, tasks

app = typer.Typer(
    name="longattn",
    help="Turn short-context checkpoints into long-context ones with an efficient attention mechanism.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _program(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    # this function has no docstring, because typer would print it as the help of the program
    if version:
        from .. import __version__

        typer.echo(f"longattn {__version__}")
        raise typer.Exit


class Command(TyperCommand):
    """A command of typer that says how options of a mechanism are typed if it does not know a flag."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of a command line. Wrong usage raises typer's error."""
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            flag = getattr(error, "option_name", "")  # of an unknown flag
            if flag.startswith("--") and any(parameter.name == "option" for parameter in self.params):
                ctx.fail(
                    f"{error.format_message()}. An option of a mechanism is typed --option "
                    f"{flag[2:].replace('-', '_')}=VALUE."
                )
            raise


COMMANDS = (convert, export, compress, plan, inspect, search, embed, mechanisms, recipes, push)
for command in COMMANDS:
    app.command(cls=Command)(command)
app.add_typer(tasks, name="train", help="Train a model, short or converted, on long documents or text.")
app.add_typer(tasks, name="evaluate", help="Score a model with its own head, without training.")


def hyphenated(word: str) -> str:
    """A word of a command line, with hyphens in the name of a flag: ``--max_length=512`` becomes ``--max-length=512``.
    People type underscores because transformers' fields have them."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["RUST_BACKTRACE"] = "0"  # otherwise, a failing tokenizer prints thousands of characters
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if arguments is None else arguments
    try:
        app([hyphenated(word) for word in words], standalone_mode=True)
    except (OSError, LongAttentionError, MemoryError, RuntimeError) as error:
        sentence = str(error)
        if isinstance(error, OSError) and error.filename:
            sentence = f"{shortened(str(error.filename))!r}: {error.strerror}."
        elif not isinstance(error, OSError | LongAttentionError):
            # torch raises RuntimeError if memory is short; any other one is a fault of the program
            if not isinstance(error, MemoryError) and "allocate" not in str(error):
                raise
            sentence = "There is not enough memory; use smaller options or lengths."
        print(error_line(sentence), file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from None
