"""Flags that several commands share, and how their values are read."""

from __future__ import annotations

from typing import Annotated, Any

import typer

__all__ = ["attention_arguments", "check_user_code", "parse_layers", "parse_mechanism", "parse_options"]

Mechanism = Annotated[
    str | None,
    typer.Option(
        help="The attention mechanism; `longattn mechanisms` lists them.", show_default="longformer; of an adopted model, its own"
    ),
]
MaxLength = Annotated[int | None, typer.Option(help="Tokens the result takes.", min=1, show_default="the source's")]
OptionFlag = Annotated[
    list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="An option of the mechanism, for example window=512. Repeatable.")
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[LAYERS=]MECHANISM[:NAME=VALUE,...]",
        help='Another mechanism in some layers, "0-3=window:window=256;11=full", or mechanisms that the layers take in turn, '
        '"window:window=256,full". Repeatable.',
    ),
]
DecoderMechanism = Annotated[
    str | None,
    typer.Option(
        metavar="MECHANISM[:NAME=VALUE,...]",
        help="The decoder's own attention, of an encoder-decoder model, for example window:window=256.",
        show_default="full",
    ),
]
MaxDecoderLength = Annotated[
    int | None, typer.Option(help="Tokens its decoder takes, of an encoder-decoder model.", min=1, show_default="the source's")
]
Positions = Annotated[
    str,
    typer.Option(
        help="Learned tables: tile, interpolate or random. Any table: none drops it, alibi puts ALiBi in its place. "
        "Rotary: rope:none, rope:linear, rope:dynamic, rope:yarn or rope:longrope:FILE. "
        "auto: tile; rope:none where no layer looks beyond the old length, else rope:yarn."
    ),
]
Dtype = Annotated[str | None, typer.Option(help="Store weights as fp32, bf16 or fp16.", show_default="as they are")]
ShardSize = Annotated[
    str | None, typer.Option(help="Split the weights into files of at most this size, for example 5GB.", show_default="as they are")
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read pytorch_model.bin where there is no safetensors file: the tensors in it, no code.")
]
MergeAdapter = Annotated[
    bool, typer.Option("--merge-adapter", help="Add a PEFT adapter to its base's weights instead of keeping it in DST/adapter.")
]
Generic = Annotated[
    bool,
    typer.Option(
        "--generic",
        help="For an architecture that has no Long classes: its plain class, config and weights, with mechanisms beside them; "
        "hf_longattn.load_generic loads the result.",
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")]
Token = Annotated[str | None, typer.Option(help="Hub access token; HF_TOKEN and `hf auth login` are found without it.")]
Private = Annotated[bool, typer.Option("--private", help="Make the repository private.")]
RemoteCode = Annotated[
    bool, typer.Option("--remote-code", help="Put the model's code beside it, so that it loads with trust_remote_code=True alone.")
]
UserCode = Annotated[
    bool, typer.Option("--bundle-user-code", help="With --remote-code: also code that is not as hf_longattn was published.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def check_user_code(remote_code: bool, user_code: bool) -> None:
    """--bundle-user-code says something about --remote-code only."""
    if user_code and not remote_code:
        raise typer.BadParameter("says what --remote-code may bundle; add that.", param_hint="--bundle-user-code")


def parse_options(pairs: list[str] | None) -> dict[str, str]:
    """`window=512` … -> {"window": "512"}; the mechanism's own option types convert the text."""
    options: dict[str, str] = {}
    for pair in pairs or []:
        name, sign, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or not name:
            raise typer.BadParameter(f"{pair!r} must read NAME=VALUE, for example window=512.", param_hint="--option")
        if name in options:
            raise typer.BadParameter(f"{name!r} is given twice.", param_hint="--option")
        options[name] = value.strip()
    return options


def parse_layers(rules: list[str] | None) -> dict[Any, Any]:
    """`0-3=window:window=256` … -> {0: {"mechanism": "window", "window": "256"}, …}; a later rule replaces an earlier one.

    A rule without numbers is taken in turn by all layers: `window:window=256,full` -> {"in_turn": [{...}, {...}]}.
    """
    from ..errors import OptionError
    from ..mechanisms.notation import read_rules

    turns: list[dict[str, Any]] = []
    layers: dict[Any, Any] = {}
    for rule in rules or []:
        try:
            found = read_rules(rule)
        except OptionError as error:
            raise typer.BadParameter(str(error), param_hint="--layers") from None
        for where, values in found:
            if where is None:
                turns.append(values)
            else:
                layers |= {index: dict(values) for index in where}
    return {**({"in_turn": turns} if turns else {}), **layers}


def parse_mechanism(rule: str | None) -> dict[str, Any] | None:
    """`window:window=256` -> {"mechanism": "window", "window": "256"}."""
    if rule is None:
        return None
    layers = parse_layers([rule])
    if list(layers) != ["in_turn"] or len(layers["in_turn"]) != 1:
        raise typer.BadParameter(f"{rule!r} must read MECHANISM[:NAME=VALUE,...], for example window:window=256.")
    return layers["in_turn"][0]


def attention_arguments(mechanism: str | None, option: list[str] | None, layers: list[str] | None) -> dict[str, Any]:
    """The keyword arguments of `convert_checkpoint` that choose the attention."""
    overrides = parse_layers(layers)
    options: dict[str, Any] = parse_options(option)
    if overrides and "layers" in options:
        raise typer.BadParameter("is given by --layers.", param_hint="--option layers")
    return {"mechanism": mechanism, "options": {**options, **({"layers": overrides} if overrides else {})}}
