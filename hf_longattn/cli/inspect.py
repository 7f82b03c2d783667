"""`longattn inspect MODEL [INPUT]`, which also draws attention patterns, `longattn mechanisms [NAME]` and `longattn recipes [NAME]`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import options as flags


def inspect(
    context: typer.Context,
    model: Annotated[str, flags.model_argument("A long checkpoint or a stock model")],
    given: Annotated[
        Path | None,
        typer.Argument(
            metavar="INPUT",
            help="Measure how attention spreads over this: a UTF-8 text file; for a model of images a photo, for one of sound a recording "
            "or a folder of them.",
            show_default=False,
        ),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Lengths of INPUT at which attention is measured: in tokens, for example 512,2K,8K; for recordings in seconds, 15,60. "
            "Without INPUT, lengths at which the memory of a stock model is estimated.",
            show_default="512,1K,2K,4K,8K tokens or 7.5,15,30 seconds, as far as MODEL and INPUT reach; without INPUT 2K,8K,32K",
        ),
    ] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MECHANISM[:NAME=VALUE,...]",
            help="A mechanism to compare, for example window:window=512. Repeatable.",
            show_default="all of them, with usual options; for a photo, those on a grid",
        ),
    ] = None,
    queries: Annotated[int, typer.Option(min=1, help="Queries measured at each length, spread over INPUT.")] = 1024,
    device: flags.Device = None,
    length: Annotated[int, typer.Option(min=2, max=512, help="Number of tokens in the drawing of a mechanism for texts.")] = 64,
    plot: Annotated[Path | None, typer.Option(help="Draw the attention patterns into this image file, which must not exist.")] = None,
    as_json: flags.Json = False,
    revision: flags.Revision = None,
    token: flags.Token = None,
) -> None:
    """Show what runs in a checkpoint's layers and why, parameters and cost.

    Of a stock model, show the windows that its layers declare, and the memory that transformers and attn_implementation="longattn" need
    for them. With INPUT, measure instead the attention of every layer as INPUT grows, and what each mechanism would keep of it. With
    --plot, also draw the layers' attention patterns.
    """
    if plot is None:
        flags.refuse_typed(context, ("--length",), "requires --plot FILE.png; without it, the cost is shown at several lengths.")
    if given is None:
        flags.refuse_typed(context, ("--candidate", "--queries", "--device"), "requires INPUT; give a text, photo or recording.")
    else:
        flags.refuse_typed(context, ("--plot",), "draws patterns of mechanisms, which no INPUT changes; leave it or INPUT out.")
        _diagnose(model, given, lengths, candidate, queries, device, as_json, revision, token)
        return

    from .show import show_inspection, show_stock
    from .terminal import print_json, say

    if plot is not None:
        from .plot import check_image

        check_image(plot)

    from ..conversion import inspect_checkpoint
    from ..conversion.sources import fetch_config
    from ..files import is_long

    if not is_long(fetch_config(model, revision, token)):
        from ..inspect import inspect_stock
        from ..inspect.texts import read_lengths

        flags.refuse_typed(context, ("--plot",), "draws mechanisms, and MODEL has none; convert it.")
        stock, tokens = inspect_stock(model, revision=revision, token=token), read_lengths((lengths or "2K,8K,32K").split(","))
        print_json({"model": model, **stock.to_dict(tokens)}) if as_json else show_stock(model, stock, tokens)
        return
    flags.refuse_typed(context, ("--lengths",), "requires INPUT; the cost of a long checkpoint is shown at several lengths.")
    inspection = inspect_checkpoint(model, revision=revision, token=token)
    if plot is not None:
        from .plot import draw_patterns, name_layers

        draw_patterns(name_layers(inspection.mechanisms), length=length, causal=inspection.causal, file=plot)
    if as_json:
        print_json({**inspection.to_dict(), **({"plot": str(plot)} if plot else {})})
        return
    show_inspection(inspection)
    if plot is not None:
        say(f"drawn: {plot}")


def _diagnose(
    model: str, given: Path, lengths: str | None, candidate: list[str] | None, queries: int, device: str | None, as_json: bool,
    revision: str | None, token: str | None,
) -> None:  # fmt: skip
    """Measure how attention spreads over an input."""
    from ..inspect import diagnose
    from ..inspect.attention import is_text
    from ..inspect.texts import DURATIONS, read_lengths, read_numbers
    from .show import show_diagnosis
    from .terminal import print_json, progress

    asked: list[float] | list[int] | None = None
    if lengths is not None:
        asked = read_lengths(lengths.split(",")) if is_text(given) else read_numbers(lengths, DURATIONS)
    with progress() as tell:
        found = diagnose(
            model, given, lengths=asked, queries=queries, candidates=candidate, device=device, revision=revision, token=token, progress=tell
        )
    print_json(found.to_dict()) if as_json else show_diagnosis(found)


def mechanisms(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Describe this one, with its options.", show_default=False)] = None,
    as_json: flags.Json = False,
) -> None:
    """List the attention mechanisms, or describe one in full."""
    from ..mechanisms import list_mechanisms, mechanism_info  # imports torch
    from .show import show_mechanism, show_mechanisms
    from .terminal import print_json

    if name is not None:
        info = mechanism_info(name)
        print_json(asdict(info)) if as_json else show_mechanism(info)
        return
    infos = [mechanism_info(mechanism) for mechanism in list_mechanisms()]
    print_json({"mechanisms": [asdict(info) for info in infos]}) if as_json else show_mechanisms(infos)


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this one, to copy or edit it.", show_default=False)] = None,
    as_json: flags.Json = False,
) -> None:
    """List the recipes for --config and accelerate, or print one."""
    from ..errors import LongAttentionError, nearest
    from ..files import read_text
    from ..training.recipes import read_recipe, ready_recipes
    from .show import show_recipes
    from .terminal import print_json, say

    ready = ready_recipes()
    if name is None:
        listed = [{"name": recipe.name, "command": recipe.command, **recipe.entries} for recipe in ready.values()]
        print_json({"recipes": listed}) if as_json else show_recipes(list(ready.values()))
        return
    if name not in ready:
        raise LongAttentionError(f"There is no recipe {name!r}.{nearest(name, ready) or ' `longattn recipes` lists them.'}")
    recipe = ready[name]
    if as_json:
        print_json({"name": name, "command": recipe.command, **recipe.entries, "values": read_recipe(name)})
    else:
        say(read_text(recipe.path), end="")
