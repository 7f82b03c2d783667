"""Flags that several commands share, and how their values are parsed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from ..reading import ready_recipes

__all__ = ["attention_arguments", "check_user_code", "parse_layers", "parse_mechanism", "parse_options"]

Mechanism = Annotated[
    str | None,
    typer.Option(help="The attention mechanism; `longattn mechanisms` lists them.", show_default="longformer; for a long model, its own"),
]
MaxLength = Annotated[int | None, typer.Option(help="Maximum length of the result, in tokens.", min=1, show_default="the source's")]
OptionFlag = Annotated[
    list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="An option of the mechanism, for example window=512. Repeatable.")
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[LAYERS=]MECHANISM[:NAME=VALUE,...]",
        help='Different mechanisms in some layers, "0-3=window:window=256;11=full", or mechanisms that layers alternate between, '
        '"window:window=256,full". Repeatable.',
    ),
]
DecoderMechanism = Annotated[
    str | None,
    typer.Option(
        metavar="MECHANISM[:NAME=VALUE,...]",
        help="Self-attention of the decoder of an encoder-decoder model, for example window:window=256.",
        show_default="full",
    ),
]
MaxDecoderLength = Annotated[
    int | None,
    typer.Option(help="Maximum length of the decoder of an encoder-decoder model, in tokens.", min=1, show_default="the source's"),
]
Positions = Annotated[
    str,
    typer.Option(
        help="Learned tables: tile, interpolate or random. Any table: none drops it, alibi replaces it with ALiBi. "
        "Rotary: rope:none, rope:linear, rope:dynamic, rope:yarn or rope:longrope:FILE. "
        "auto: tile; rope:none if no layer sees beyond the old length, else rope:yarn."
    ),
]
Dtype = Annotated[str | None, typer.Option(help="Save weights as fp32, bf16 or fp16.", show_default="unchanged")]
ShardSize = Annotated[str | None, typer.Option(help="Maximum size of a weight file, for example 5GB.", show_default="as in the source")]
AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Read pytorch_model.bin if there is no safetensors file. Only tensors are read; no code is run."),
]
MergeAdapter = Annotated[
    bool, typer.Option("--merge-adapter", help="Merge a PEFT adapter into the weights of its base instead of keeping it in DST/adapter.")
]
Generic = Annotated[
    bool,
    typer.Option(
        "--generic",
        help="For an architecture without Long classes: keep its plain class, config and weights, and add mechanisms; "
        "hf_longattn.load_generic loads the result.",
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")]
Token = Annotated[str | None, typer.Option(help="Hub access token.", show_default="HF_TOKEN, or that of `hf auth login`")]
Private = Annotated[bool, typer.Option("--private", help="Make the repository private.")]
RemoteCode = Annotated[
    bool,
    typer.Option(
        "--remote-code", help="Add the model's code, so that it loads with trust_remote_code=True where hf_longattn is not installed."
    ),
]
UserCode = Annotated[bool, typer.Option("--bundle-user-code", help="With --remote-code: also include modified or custom code.")]
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


def attention_arguments(mechanism: str | None, option: list[str] | None, layers: list[str] | None) -> dict[str, Any]:
    """The arguments of `convert_checkpoint` that choose the attention."""
    overrides = parse_layers(layers)
    options: dict[str, Any] = parse_options(option)
    if overrides and "layers" in options:
        raise typer.BadParameter("contradicts --layers.", param_hint="--option layers")
    return {"mechanism": mechanism, "options": {**options, **({"layers": overrides} if overrides else {})}}


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
