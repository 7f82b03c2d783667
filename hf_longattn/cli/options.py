"""Flags that several commands share, and flags made from the fields of a config."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Annotated, Any, TypeVar

import typer

from ..conversion import ConversionConfig
from ..conversion.config import Settings
from ..errors import OptionError
from ..files import check_name
from ..mechanisms.common.choice_text import IN_TURN, read_choice, read_pairs, read_rules, read_towers
from ..training.recipes import read_recipe, recipe_names

C = TypeVar("C", bound=Callable[..., None])


def takes_settings(kind: type[Settings]) -> Callable[[C], C]:
    """Decorator of a command: flags of the settings in place of its argument ``config``, which is made from them."""
    settings = {
        flag_of(setting).partition("/")[0][2:].replace("-", "_"): setting for setting in fields(kind) if setting.metadata["flag"] != "-"
    }

    def decorate(command: C) -> C:
        def wrapper(**values: Any) -> None:
            chosen = {}
            for name, setting in settings.items():
                value, read = values.pop(name), READERS.get(setting.name)
                try:
                    chosen[setting.name] = read(value) if read and value is not None else value
                except OptionError as error:
                    raise typer.BadParameter(str(error), param_hint=flag_of(setting)) from None
            command(**values, config=kind(**chosen))

        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            if parameter.name != "config":
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
                continue
            for name, setting in settings.items():
                value_type, default = setting.metadata["type"], setting.default
                if default is None:
                    value_type = (list[str] if value_type is list else value_type) | None
                annotated = {"default": default, "annotation": Annotated[value_type, option(setting)]}
                parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, **annotated))
        wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return wrapper  # type: ignore[return-value]

    return decorate


def flag_of(setting: Field[Any]) -> str:
    """The flag of a setting."""
    return setting.metadata["flag"] or f"--{setting.name.replace('_', '-')}"


def option(setting: Field[Any]) -> Any:
    """The option of a setting, with its help."""
    about = setting.metadata
    if about["type"] is bool:
        return typer.Option(flag_of(setting), help=about["help"])
    return typer.Option(
        flag_of(setting), help=about["help"], metavar=about["metavar"], min=about["minimum"], show_default=about["unset"] or True
    )


def read_layers(rules: list[str]) -> dict[Any, Any]:
    """`0-3=window:window=256` … -> {0: {"mechanism": "window", "window": "256"}, …}; a later rule replaces an earlier one.

    Rules without numbers apply in turn: `window:window=256,full` -> {"in_turn": [{...}, {...}]}.
    """
    layers: dict[Any, Any] = {}
    for where, values in read_rules(";".join(rules)):
        if where is None:
            layers.setdefault(IN_TURN, []).append(values)
        else:
            layers |= {index: dict(values) for index in where}
    return layers


READERS: dict[str, Callable[[Any], Any]] = {
    "options": read_pairs,
    "layers": read_layers,
    "decoder_long_attention": read_choice,
    "towers": read_towers,
}
"""Settings whose text stands for a mapping -> what reads it."""


def model_argument(what: str, metavar: str = "MODEL") -> Any:
    """The argument of a model, with its help."""
    return typer.Argument(metavar=metavar, callback=check_name, help=f"{what}: a folder or a Hub repository id.", show_default=False)


def refuse_typed(context: typer.Context, flags: tuple[str, ...], sentence: str) -> None:
    """Refuse the first of ``flags`` that was typed, even with its default value; the sentence says why it would have no effect."""
    for flag in flags:
        source = context.get_parameter_source(flag.lstrip("-").replace("-", "_"))
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(sentence, param_hint=flag)


_SHARED = {setting.name: option(setting) for setting in fields(ConversionConfig)}
RemoteCode = Annotated[bool, _SHARED["remote_code"]]
Revision = Annotated[str | None, _SHARED["revision"]]
Token = Annotated[str | None, _SHARED["token"]]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the destination once the new one is complete.")]
Private = Annotated[bool, typer.Option("--private", help="Create a private repository; refused if it exists and is public.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def _apply_recipe(context: typer.Context, recipe: str | None) -> str | None:
    """Take a recipe's values as defaults of the flags.

    Raises:
        OptionError: a value that its flag would not take.
    """
    if recipe is None:
        return None
    parameters: dict[str, Any] = {parameter.name: parameter for parameter in context.command.params if parameter.name}
    values = read_recipe(recipe, parameters)
    for name, value in values.items():
        parameter = parameters[name]
        if isinstance(value, dict) or isinstance(value, list) != parameter.multiple:
            wanted = "list" if parameter.multiple else "single value"
            raise OptionError(f"The recipe {recipe} sets {name!r} to {value!r}; it must be a {wanted}.")
        try:
            parameter.process_value(context, value)
        except typer.BadParameter as error:
            raise OptionError(f"The recipe {recipe} sets {name!r} to {value!r}: {error.message.rstrip('.')}.") from error
    context.default_map = {**(context.default_map or {}), **values}
    return recipe


Recipe = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="RECIPE",
        callback=_apply_recipe,
        is_eager=True,
        help=f"Values for these flags; what is typed takes precedence. A YAML file or a ready recipe: {recipe_names('convert')}.",
    ),
]
