"""Flags that several commands share, and how their values are parsed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from typing import Annotated, Any, TypeVar

import typer

from ..conversion import ConversionConfig
from ..conversion.config import Settings
from ..errors import OptionError
from ..mechanisms.common.choice_text import IN_TURN, read_choice, read_pairs, read_rules, read_towers
from ..training.recipes import read_recipe, recipe_names

C = TypeVar("C", bound=Callable[..., None])


def flag_name(setting: Field[Any]) -> str:
    """The parameter of a command for a setting: `no_verify` for `verify`."""
    return (setting.metadata["flag"].lstrip("-") or setting.name).replace("-", "_")


def flag(setting: Field[Any]) -> Any:
    """The flag of a setting, with its help."""
    metadata = setting.metadata
    if metadata["type"] is bool:
        return typer.Option(f"--{flag_name(setting).replace('_', '-')}", help=metadata["flag_help"])
    names = [metadata["flag"]] if metadata["flag"] else []
    return typer.Option(
        *names, help=metadata["help"], metavar=metadata["metavar"], min=metadata["minimum"], show_default=metadata["unset"] or True
    )


def parameter(setting: Field[Any]) -> inspect.Parameter:
    """The parameter of a command for a setting."""
    kind = setting.metadata["type"]
    annotation = bool if kind is bool else list[str] | None if kind is list else kind if setting.default is not None else kind | None
    default = False if kind is bool else setting.default
    return inspect.Parameter(
        flag_name(setting), inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, flag(setting)]
    )


def takes_settings(kind: type[Settings], *, planned: bool = False) -> Callable[[C], C]:
    """Decorator of a command: flags of the settings in place of its argument ``config``, which is made from them.

    Args:
        kind: of the config.
        planned: only the settings that a plan depends on.
    """
    flags = {
        setting.name: parameter(setting)
        for setting in fields(kind)
        if setting.metadata["flag"] != "-" and (setting.metadata["planned"] or not planned)
    }

    def decorate(command: C) -> C:
        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            typed = {name: values.pop(flag.name) for name, flag in flags.items()}
            if typed.get("verify_text") is not None and typed.get("verify"):
                raise typer.BadParameter("contradicts --no-verify.", param_hint="--verify-text")
            read = {name: parse(typed[name]) or None for name, parse in PARSERS.items() if name in typed}
            if read.get("layers") and "layers" in (read["options"] or {}):
                raise typer.BadParameter("contradicts --layers.", param_hint="--option layers")
            verify = {"verify": not typed["verify"]} if "verify" in typed else {}
            config = kind(**{**typed, **read, **verify})
            if isinstance(config, ConversionConfig):
                config.check_mechanisms()
            command(**values, config=config)

        parameters: list[inspect.Parameter] = []
        for name, argument in inspect.signature(command, eval_str=True).parameters.items():
            parameters += flags.values() if name == "config" else [argument.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
        del wrapper.__wrapped__
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {argument.name: argument.annotation for argument in parameters}
        return wrapper  # type: ignore[return-value]

    return decorate


def check_model(name: str | None) -> str | None:
    """Refuse a folder that does not exist before anything slow is imported."""
    from ..loading import check_name

    if name is not None:
        check_name(name)
    return name


def model_argument(what: str) -> Any:
    """The argument MODEL, with its help."""
    return typer.Argument(metavar="MODEL", callback=check_model, help=f"{what}: a folder or a Hub repository id.", show_default=False)


def refuse_typed(context: typer.Context, options: Sequence[str], sentence: str) -> None:
    """Refuse the first of ``options`` that was typed, even with its default value; the sentence says why it would have no effect."""
    names = {flag: parameter.name for parameter in context.command.params for flag in parameter.opts}
    for option in options:
        source = context.get_parameter_source(names[option] or "")
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(sentence, param_hint=option)


def arguments(function: Callable[..., Any], flags: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """The arguments of ``function`` among a command's ``locals()``: flags of the same names. ``others`` replace them."""
    return {name: value for name, value in {**flags, **others}.items() if name in inspect.signature(function).parameters}


def _read(flag: str, read: Callable[[Any], Any], value: Any) -> Any:
    """What ``read`` makes of the value of a flag, which an error names."""
    try:
        return read(value)
    except OptionError as error:
        raise typer.BadParameter(str(error), param_hint=flag) from None


def parse_options(pairs: list[str] | None) -> dict[str, str]:
    """`window=512` … -> {"window": "512"}; the mechanism's option types convert the text."""
    options: dict[str, str] = _read("--option", read_pairs, pairs or [])
    return options


def parse_layers(rules: list[str] | None) -> dict[Any, Any]:
    """`0-3=window:window=256` … -> {0: {"mechanism": "window", "window": "256"}, …}; a later rule replaces an earlier one.

    Rules without numbers apply in turn: `window:window=256,full` -> {"in_turn": [{...}, {...}]}.
    """
    turns: list[dict[str, Any]] = []
    layers: dict[Any, Any] = {}
    for rule in rules or []:
        for where, values in _read("--layers", read_rules, rule):
            if where is None:
                turns.append(values)
            else:
                layers |= {index: dict(values) for index in where}
    return {**({IN_TURN: turns} if turns else {}), **layers}


PARSERS: dict[str, Callable[[Any], Any]] = {
    "options": parse_options,
    "layers": parse_layers,
    "decoder_long_attention": lambda rule: None if rule is None else _read("--decoder-mechanism", read_choice, rule),
    "towers": lambda towers: None if towers is None else _read("--towers", read_towers, towers),
}
"""How the values of settings that are no plain values are read."""

_SHARED = {setting.name: flag(setting) for setting in fields(ConversionConfig)}
RemoteCode = Annotated[bool, _SHARED["remote_code"]]
Revision = Annotated[str | None, _SHARED["revision"]]
Token = Annotated[str | None, _SHARED["token"]]
Device = Annotated[str | None, typer.Option(help="cpu, cuda …", show_default="the accelerator, if there is one")]
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
    values = read_recipe(recipe, parameters, "convert")
    for name, value in values.items():
        parameter = parameters[name]
        wants_list = parameter.multiple or parameter.nargs != 1
        if isinstance(value, dict) or isinstance(value, list) != wants_list:
            wanted = "list" if wants_list else "single value"
            raise OptionError(f"The recipe {recipe} sets {parameter.name!r} to {value!r}; it must be a {wanted}.")
        try:
            parameter.process_value(context, value)
        except typer.BadParameter as error:
            raise OptionError(f"The recipe {recipe} sets {parameter.name!r} to {value!r}: {error.message.rstrip('.')}.") from error
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
