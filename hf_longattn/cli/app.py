"""The commands of `longattn`; errors become one sentence and an exit code."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..errors import UNFIT_TORCHVISION, LongAttentionError, error_line, lacks_fitting_torchvision, lacks_memory, rust_panics, shortened
from . import compress, convert, embed, env, export, hub, inspect, search, train

app = typer.Typer(
    name="longattn",
    help="Turn short-context checkpoints into long-context ones with an efficient attention mechanism.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(version: bool) -> None:
    if version:
        from .. import __version__

        typer.echo(f"longattn {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    pass


class Command(TyperCommand):
    """A command that says how a mechanism's options are typed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The words of a command line.

        Raises:
            click.UsageError: an option of a mechanism without --option, or --option with a name and no value.
        """
        flags = {flag for parameter in self.get_params(ctx) for flag in (*parameter.opts, *parameter.secondary_opts)}
        if "--option" in flags and not ctx.resilient_parsing:
            values = [word if word and word[0] != "-" else "VALUE" for word in (*args, "", "")]
            for place, word in enumerate(args):
                flag, _, value = word.partition("=")
                name = flag.removeprefix("--").replace("-", "_")
                if flag.startswith("--") and flag not in flags:
                    from ..mechanisms.common.registry import list_mechanisms, options_of

                    if any(name in options_of(mechanism) for mechanism in list_mechanisms()):
                        ctx.fail(f"{flag} is an option of mechanisms; type --option {name}={value or values[place + 1]}.")
                if word == "--option" and (after := "".join(args[place + 1 : place + 2])).isidentifier():
                    ctx.fail(f"--option {after} has no value; type --option {after}={values[place + 2]}.")
        return super().parse_args(ctx, args)


COMMANDS = (
    convert.convert,
    export.export,
    compress.compress,
    convert.plan,
    inspect.inspect,
    search.search,
    embed.embed,
    inspect.mechanisms,
    inspect.recipes,
    hub.card,
    hub.push,
    env.env,
)
for command in COMMANDS:
    app.command(cls=Command)(command)
app.add_typer(train.app, name="train", help="Train a model, short or converted, on long documents or text.")
app.add_typer(train.app, name="evaluate", help="Score a model with its own head, without training.")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["RUST_BACKTRACE"] = "0"  # thousands of characters before the sentence about a tokenizer that fails
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if not env.torchvision_fits():  # transformers imports it with any model, and fails; without it, what reads no images works
        sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]
    try:
        with rust_panics():
            app(arguments, standalone_mode=True)
    except OSError as error:
        _fail(f"{shortened(str(error.filename))!r}: {error.strerror}." if error.filename else str(error))
    except ValueError as error:
        if not isinstance(error, LongAttentionError):
            raise
        _fail(str(error))
    except ImportError as error:
        if not lacks_fitting_torchvision(error):
            raise
        _fail(UNFIT_TORCHVISION)
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        _fail("There is not enough memory; use smaller options or lengths.")


def _fail(sentence: str) -> None:
    print(error_line(sentence), file=sys.stderr)
    raise SystemExit(1)
