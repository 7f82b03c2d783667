"""Help in two lengths: ``--help`` has the options that most calls need, at most 60 lines, and ``--help-all`` has every option."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..catalogue import is_option
from .terminal import say

_CONVERSION = (
    "search_text", "search_images", "search_audio", "towers", "text_global", "decoder_mechanism", "max_decoder_length",
    "max_shard_size", "allow_pickle", "needs_training", "generic", "verify_text", "verify_audio", "init_from_text",
    "native", "remote_code", "bundle_user_code", "revision", "token", "private",
)  # fmt: skip
RARE_OPTIONS: dict[str, tuple[str, ...]] = {
    "convert": _CONVERSION,
    "plan": _CONVERSION,
    "search": ("pieces", "compare_at", "device", "revision", "token"),
}
"""By command, the parameters that only ``--help-all`` shows. Such a command has the argument ``help_all``."""
SHOW_ALL = f"{__name__}.all"


class Command(TyperCommand):
    """A command whose rare options are left out of ``--help``, and which says how a mechanism's options are typed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The words of a command line.

        Raises:
            click.UsageError: an option of a mechanism without --option, or --option with a name and no value.
        """
        flags = {flag for parameter in self.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        if "--option" in flags and not ctx.resilient_parsing:
            values = [word if word and word[0] != "-" else "VALUE" for word in (*args, "", "")]
            for place, word in enumerate(args):
                flag, _, value = word.partition("=")
                name = flag.removeprefix("--").replace("-", "_")
                if flag.startswith("--") and flag not in flags and is_option(name):
                    ctx.fail(f"{flag} is an option of mechanisms; type --option {name}={value or values[place + 1]}.")
                if word == "--option" and (after := "".join(args[place + 1 : place + 2])).isidentifier():
                    ctx.fail(f"--option {after} has no value; type --option {after}={values[place + 2]}.")
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The options, without the rare ones unless ``--help-all`` asks for them."""
        rare = () if ctx.meta.get(SHOW_ALL) else RARE_OPTIONS.get(self.name or "", ())
        hidden = [parameter for parameter in self.params if parameter.name in rare]
        for parameter in hidden:
            parameter.hidden = True  # type: ignore[attr-defined]
        try:
            super().format_options(ctx, formatter)
        finally:
            for parameter in hidden:
                parameter.hidden = False  # type: ignore[attr-defined]


def _show_all(context: typer.Context, value: bool) -> None:
    if value and not context.resilient_parsing:
        context.meta[SHOW_ALL] = True
        say(context.get_help())
        raise typer.Exit


HelpAll = Annotated[
    bool, typer.Option("--help-all", callback=_show_all, is_eager=True, show_default=False, help="Show every option and exit.")
]
