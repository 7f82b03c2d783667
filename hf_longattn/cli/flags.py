"""Flags that several commands share, and flags that are made from the fields of a settings class."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Annotated, Any, TypeVar

import typer

from ..conversion import ConversionConfig
from ..conversion.settings import Settings
from ..errors import OptionError, flag
from ..mechanisms.common.options import read_choice, read_layer_choices, read_pairs, read_towers
from ..training.recipes import read_recipe, recipe_names

C = TypeVar("C", bound=Callable[..., None])
KEYWORD = inspect.Parameter.KEYWORD_ONLY


def takes_settings(config_class: type[Settings]) -> Callable[[C], C]:
    """A decorator for a command with the argument ``config``, an object of a settings class.

    On the command line, there is a flag for every setting in place of ``config``.
    """
    settings = {}  # name of a parameter of the command line, such as "decoder_mechanism" -> the setting
    for setting in fields(config_class):
        if setting.metadata["flag"] != "-":
            settings[flag_of(setting).partition("/")[0][2:].replace("-", "_")] = setting

    def decorate(command: C) -> C:
        """The command with the flags in its signature, from which typer makes its options."""

        def wrapper(**values: Any) -> None:
            """Run the command. ``values``: the values of all flags, which typer passes by name."""
            config_values = {}
            for name, setting in settings.items():
                value = values.pop(name)
                try:
                    if value is not None and setting.name in READERS:
                        value = READERS[setting.name](value)
                    config_values[setting.name] = value
                except OptionError as error:
                    raise typer.BadParameter(str(error), param_hint=flag_of(setting)) from None
            command(**values, config=config_class(**config_values))

        flags = [
            inspect.Parameter(
                name,
                KEYWORD,
                default=setting.default,
                annotation=Annotated[setting.metadata["type"] | None, option(setting)],
            )
            for name, setting in settings.items()
        ]
        parameters = list[inspect.Parameter]()
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            parameters += flags if parameter.name == "config" else [parameter.replace(kind=KEYWORD)]
        wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return wrapper  # type: ignore[return-value]

    return decorate


def flag_of(setting: Field[Any]) -> str:
    """The flag of a setting, such as ``--max-length``, or ``--verify/--no-verify`` with its negative form."""
    return setting.metadata["flag"] or flag(setting.name)


def option(setting: Field[Any]) -> Any:
    """The option of typer for a setting, with its help text."""
    about = setting.metadata
    shown = {"metavar": about["metavar"], "min": about["minimum"], "show_default": about["unset"] or True}
    return typer.Option(flag_of(setting), help=about["help"], **shown)


def read_layers(rules: list[str]) -> str:
    """Join the values of ``--layers`` into one line. Typing errors are refused here, before torch is imported."""
    text = ";".join(rules)
    read_layer_choices(text)
    return text


READERS: dict[str, Callable[[Any], Any]] = {
    "options": read_pairs,
    "layers": read_layers,
    "decoder_long_attention": read_choice,
    "towers": read_towers,
}
"""Name of a setting that is a mapping in Python -> the parser of its text on the command line."""


def model_argument(what: str, metavar: str = "MODEL") -> Any:
    """The argument of a command that takes a model. ``what``: the kind of model, for the help."""
    return typer.Argument(metavar=metavar, help=f"{what}: a folder or a Hub repository id.", show_default=False)


def refuse_typed(context: typer.Context, names: tuple[str, ...], sentence: str) -> None:
    """Refuse options that would have no effect, if they were typed, even with their default values.

    Args:
        names: the names of the options.
        sentence: why they have no effect, and what to type, as the message after the option's name.
    """
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(sentence, param_hint=flag(name))


_SHARED = {setting.name: option(setting) for setting in fields(ConversionConfig)}
RemoteCode = Annotated[bool, _SHARED["remote_code"]]
Revision = Annotated[str | None, _SHARED["revision"]]
Token = Annotated[str | None, _SHARED["token"]]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the destination once the new one is complete.")]
Private = Annotated[
    bool, typer.Option("--private", help="Create a private repository; refused if it exists and is public.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def _apply_recipe(context: typer.Context, recipe: str | None) -> str | None:
    """Make the values of a recipe the defaults of a command's flags, so that typed flags take precedence."""
    parameters: dict[str, Any] = {parameter.name: parameter for parameter in context.command.params if parameter.name}
    if recipe is None:
        return None
    values = read_recipe(recipe, parameters)
    for name, value in values.items():
        takes_list = parameters[name].multiple
        if isinstance(value, dict) or isinstance(value, list) != takes_list:
            expected = "list" if takes_list else "single value"
            raise OptionError(f"The recipe {recipe} sets {name!r} to {value!r}; it must be a {expected}.")
    context.default_map = {**(context.default_map or {}), **values}
    return recipe


Recipe = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="RECIPE",
        callback=_apply_recipe,
        is_eager=True,
        help="Values for these flags; what is typed takes precedence. A YAML file or a ready recipe: "
        f"{recipe_names('convert')}.",
    ),
]
