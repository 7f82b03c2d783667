"""`longattn inspect MODEL`, which also draws attention patterns, `longattn mechanisms [NAME]` and `longattn recipes [NAME]`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as flags


def inspect(
    context: typer.Context,
    model: Annotated[str | None, flags.model_argument("A long or short checkpoint")] = None,
    mechanism: Annotated[
        str | None, typer.Option(help="Draw this mechanism instead of a model's; without --option, its options fit short inputs.")
    ] = None,
    option: flags.OptionFlag = None,
    length: Annotated[int, typer.Option(min=2, max=512, help="Number of tokens in the drawing of a mechanism for texts.")] = 64,
    causal: Annotated[bool, typer.Option("--causal", help="With --mechanism: draw its causal form.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the attention patterns into this image file, which must not exist.")] = None,
    as_json: flags.Json = False,
    revision: flags.Revision = None,
    token: flags.Token = None,
) -> None:
    """Show what runs in a checkpoint's layers and why, parameters and cost.

    With --plot, also draw their attention patterns, or with --mechanism that of a mechanism instead.
    """
    if (model is None) == (mechanism is None):
        raise typer.BadParameter("give either MODEL or --mechanism NAME --plot FILE.png.")
    if mechanism is not None and plot is None:
        raise typer.BadParameter("requires --plot FILE.png; `longattn mechanisms NAME` describes it in words.", param_hint="--mechanism")
    if mechanism is None:
        flags.refuse_typed(context, ("--option", "--causal"), "requires --mechanism.")
    else:
        flags.refuse_typed(context, ("--revision", "--token"), "is for MODEL, but a mechanism alone is drawn; leave it out.")
    if plot is None:
        flags.refuse_typed(context, ("--length",), "requires --plot FILE.png; without it, the cost is shown at several lengths.")

    from .show import show_inspection
    from .terminal import print_json, say

    if plot is not None:
        from ..drawing import check_image

        check_image(plot)
    if mechanism is not None and plot is not None:
        from ..mechanisms.common.registry import mechanism_class, mechanism_from
        from .plot import draw_patterns

        chosen: dict[str, Any] = dict(flags.parse_options(option)) or mechanism_class(mechanism).sample
        built = mechanism_from(mechanism, chosen, num_heads=4, head_dim=16, max_length=length)
        draw_patterns(
            {built.name + "".join(f", {name} {value}" for name, value in chosen.items()): built}, length=length, causal=causal, file=plot
        )
        print_json({"mechanism": mechanism, "plot": str(plot)}) if as_json else say(f"drawn: {plot}")
        return

    from ..conversion import inspect_checkpoint

    assert model is not None
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
    from ..reading import read_text
    from ..recipes import read_recipe, ready_recipes
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
