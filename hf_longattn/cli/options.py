"""Flags that several commands share, and how their values are parsed."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from ..conversion import ConversionConfig
from ..reading import ready_recipes

__all__ = ["check_user_code", "parse_layers", "parse_mechanism", "parse_options", "takes_settings"]

FIELDS = {one.name: one for one in fields(ConversionConfig) if one.metadata["flag"] != "-"}
"""The settings of a conversion that the command line has, by name."""
C = TypeVar("C", bound=Callable[..., None])


def flag_name(name: str) -> str:
    """The parameter of a command for a setting: `no_verify` for `verify`."""
    return (FIELDS[name].metadata["flag"].lstrip("-") or name).replace("-", "_")


def flag(name: str) -> Any:
    """The flag of a setting, with its help."""
    about = FIELDS[name].metadata
    if about["type"] is bool:
        return typer.Option(f"--{flag_name(name).replace('_', '-')}", help=about["flag_help"])
    given = [about["flag"]] if about["flag"] else []
    return typer.Option(*given, help=about["help"], metavar=about["metavar"], min=about["minimum"], show_default=about["unset"] or True)


def parameter(name: str) -> inspect.Parameter:
    """The parameter of a command for a setting."""
    kind, default = FIELDS[name].metadata["type"], FIELDS[name].default
    annotation = bool if kind is bool else list[str] | None if kind is list else str if default is not None else kind | None
    where = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(
        flag_name(name), where, default=False if kind is bool else default, annotation=Annotated[annotation, flag(name)]
    )


def takes_settings(*, planned: bool = False) -> Callable[[C], C]:
    """Decorator of a command: flags of the settings in place of its argument ``config``, a :class:`ConversionConfig` made from them.

    Args:
        planned: only those that a plan depends on.
    """

    def decorate(command: C) -> C:
        names = [name for name, one in FIELDS.items() if one.metadata["planned"] or not planned]
        own = inspect.signature(command, eval_str=True).parameters
        made = {name: parameter(name) for name in names}

        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            given = {name: values.pop(one.name) for name, one in made.items()}
            command(**values, config=read_settings(given))

        parameters: list[inspect.Parameter] = []
        for name, one in own.items():
            parameters += made.values() if name == "config" else [one.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
        del wrapper.__wrapped__
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {one.name: one.annotation for one in parameters}
        return wrapper  # type: ignore[return-value]

    return decorate


def read_settings(given: dict[str, Any]) -> ConversionConfig:
    """The config from the values of the flags, by the settings' names."""
    if given.get("verify_text") is not None and given.get("verify"):
        raise typer.BadParameter("contradicts --no-verify.", param_hint="--verify-text")
    check_user_code(given.get("remote_code", False), given.get("user_code", False))
    options, layers = parse_options(given["options"]), parse_layers(given["layers"])
    if layers and "layers" in options:
        raise typer.BadParameter("contradicts --layers.", param_hint="--option layers")
    decoder = parse_mechanism(given["decoder_long_attention"])
    read = {"options": options or None, "layers": layers or None, "decoder_long_attention": decoder}
    return ConversionConfig(**{**given, **read, "verify": not given.get("verify")})


OptionFlag = Annotated[list[str] | None, flag("options")]
Dtype = Annotated[str | None, flag("dtype")]
ShardSize = Annotated[str | None, flag("max_shard_size")]
VerifyText = Annotated[Path | None, flag("verify_text")]
NoVerify = Annotated[bool, flag("verify")]
Overwrite = Annotated[bool, flag("overwrite")]
RemoteCode = Annotated[bool, flag("remote_code")]
UserCode = Annotated[bool, flag("user_code")]
Revision = Annotated[str | None, flag("revision")]
Token = Annotated[str | None, flag("token")]
Private = Annotated[bool, typer.Option("--private", help="Make the repository private.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def check_user_code(remote_code: bool, user_code: bool) -> None:
    """--bundle-user-code requires --remote-code."""
    if user_code and not remote_code:
        raise typer.BadParameter("requires --remote-code.", param_hint="--bundle-user-code")


def parse_options(pairs: list[str] | None) -> dict[str, str]:
    """`window=512` … -> {"window": "512"}; the mechanism's option types convert the text."""
    from ..mechanisms.composite import read_pairs

    with _bad_parameter("--option"):
        return read_pairs(pairs or [])


def parse_layers(rules: list[str] | None) -> dict[Any, Any]:
    """`0-3=window:window=256` … -> {0: {"mechanism": "window", "window": "256"}, …}; a later rule replaces an earlier one.

    Rules without numbers apply in turn: `window:window=256,full` -> {"in_turn": [{...}, {...}]}.
    """
    from ..mechanisms.composite import read_rules

    turns: list[dict[str, Any]] = []
    layers: dict[Any, Any] = {}
    with _bad_parameter("--layers"):
        for where, values in (found for rule in rules or [] for found in read_rules(rule)):
            if where is None:
                turns.append(values)
            else:
                layers |= {index: dict(values) for index in where}
    return {**({"in_turn": turns} if turns else {}), **layers}


def parse_mechanism(rule: str | None) -> dict[str, Any] | None:
    """`window:window=256` -> {"mechanism": "window", "window": "256"}."""
    from ..mechanisms.composite import read_choice

    with _bad_parameter("--decoder-mechanism"):
        return None if rule is None else read_choice(rule)


@contextlib.contextmanager
def _bad_parameter(flag: str) -> Iterator[None]:
    from ..errors import OptionError

    try:
        yield
    except OptionError as error:
        raise typer.BadParameter(str(error), param_hint=flag) from None


def _apply_recipe(context: typer.Context, recipe: str | None) -> str | None:
    if recipe is not None:
        from ..reading import read_recipe

        flags = [parameter.name for parameter in context.command.params if parameter.name]
        context.default_map = {**(context.default_map or {}), **read_recipe(recipe, flags)}
    return recipe


Recipe = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="RECIPE",
        callback=_apply_recipe,
        is_eager=True,
        help=f"Values for these flags; what is typed takes precedence. A YAML file or a ready recipe: {', '.join(ready_recipes())}.",
    ),
]
