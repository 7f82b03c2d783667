"""`longattn inspect MODEL [INPUT]`, which also draws attention patterns, `longattn mechanisms [NAME]` and `longattn
recipes [NAME]`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal
from rich.padding import Padding
from rich.styled import Styled

from . import flags
from .checkpoints import costs_table
from .terminal import Line, Part, progress, show, table

if TYPE_CHECKING:
    from ..evaluation.flops import DecodeState
    from ..inspect import Diagnosis, Inspection, StockInspection


def inspect(
    context: typer.Context,
    model: Annotated[str, flags.model_argument("A long checkpoint or a stock model")],
    file: Annotated[
        Path | None,
        typer.Argument(metavar="INPUT", help="A text to measure attention on.", show_default=False),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Lengths of INPUT in tokens, for example 512,2K,8K; without INPUT, lengths for a stock model's "
            "memory.",
            show_default="512 to 8K tokens, as far as MODEL and INPUT reach; without INPUT 2K,8K,32K",
        ),
    ] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MECHANISM[:NAME=VALUE,...]",
            help="A mechanism to compare, for example window:window=512. Repeatable.",
            show_default="all that fit, with usual options",
        ),
    ] = None,
    queries: Annotated[int, typer.Option(min=1, help="Queries measured at each length, spread over INPUT.")] = 1024,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda …", show_default="the accelerator, if there is one")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the attention patterns into this image file, which must not exist.")
    ] = None,
    as_json: flags.Json = False,
    revision: flags.Revision = None,
    token: flags.Token = None,
) -> None:
    """Show what runs in a checkpoint's layers and why, parameters and cost.

    Of a stock model, show the windows that its layers declare, and the memory that transformers and
    attn_implementation="longattn" need for them. With INPUT, measure instead the attention of every layer as INPUT
    grows, and what each mechanism would keep of it. With --plot, also draw the layers' attention patterns.
    """
    if file is None:
        flags.refuse_typed(context, ("candidate", "queries", "device"), "requires INPUT; give a text.")
    else:
        flags.refuse_typed(
            context, ("plot",), "draws patterns of mechanisms, which no INPUT changes; leave it or INPUT out."
        )
    from ..conversion.source_models import open_source
    from ..errors import check_extra
    from ..files import check_new_file, is_long
    from ..inspect import diagnose, inspect_checkpoint, inspect_stock
    from ..inspect.drawing import draw_patterns, name_layers
    from ..inspect.texts import read_lengths

    if file is not None:
        measured = None if lengths is None else read_lengths(lengths.split(","))
        with progress() as tell:
            diagnosis = diagnose(
                model,
                file,
                lengths=measured,
                queries=queries,
                candidates=candidate,
                device=device,
                revision=revision,
                token=token,
                progress=tell,
            )
        show(diagnosis.to_dict(), diagnosis_report(diagnosis), as_json=as_json)
        return
    if plot is not None:
        check_extra("plot")
        check_new_file(plot)
    if not is_long(open_source(model, revision, token, weights=False).config):
        flags.refuse_typed(context, ("plot",), "draws mechanisms, and MODEL has none; convert it.")
        stock = inspect_stock(model, revision=revision, token=token)
        tokens = read_lengths((lengths or "2K,8K,32K").split(","))
        show({"model": model, **stock.to_dict(tokens)}, _stock_report(model, stock, tokens), as_json=as_json)
        return
    flags.refuse_typed(
        context, ("lengths",), "requires INPUT; the cost of a long checkpoint is shown at several lengths."
    )
    inspection = inspect_checkpoint(model, revision=revision, token=token)
    values = inspection.to_dict()
    if plot is not None:
        draw_patterns(name_layers(inspection.mechanisms, inspection.shape.causal), file=plot)
        values["plot"] = str(plot)
    show(values, _inspection_report(inspection), as_json=as_json)


def _inspection_report(model: Inspection) -> Iterator[Part]:
    """A checkpoint: its model, mechanisms, state and cost."""
    from ..inspect.layers import COLUMNS, planned_length, planned_paths
    from ..mechanisms.common.options import write_numbers

    class_name = model.class_name
    if model.generic:
        class_name += " of transformers, with mechanisms"
    longest = model.longest_input
    if model.look_back:
        longest = f"of any length: a query looks back {model.look_back:,} positions"
    direction = "causal" if model.shape.causal else "bidirectional"
    yield {
        "model": f"{model.source.name}  ({class_name}, model type {model.model_type})",
        "input": "" if model.tower_names else f"{longest}, {direction}",
        "parameters": f"{model.parameters:,}  ({decimal(model.parameters * model.shape.element_bytes)})",
        "heads kept": ", ".join(f"{heads} in layer {layer}" for layer, heads in model.kept_heads.items()),
        "towers as in their class": ", ".join(model.other_towers),
    }
    if model.tower_names:
        for name, tower in model.towers.items():
            yield Styled(f"\ntower {name}", "bold")
            yield from _inspection_report(tower)
        return
    yield f"\n{model.attention.table(len(model.mechanisms))}\n"
    title = f"what runs on this machine for {planned_length(model):,} tokens in fp32, and why"
    yield table(COLUMNS, planned_paths(model).rows(), title, align="l")
    states: dict[tuple[str, DecodeState], list[int]] = {}
    for number, state in enumerate(model.states):
        states.setdefault((model.mechanisms[number].name, state), []).append(number)
    if states:
        rows = [
            (write_numbers(numbers), name, decimal(state.bytes), decimal(state.per_token))
            for (name, state), numbers in states.items()
        ]
        title = f"state of each layer while decoding a sequence of {model.max_length:,} tokens"
        yield table(("layers", "mechanism", "state", "added by each further token"), rows, title, align="l")
    if model.costs:
        yield costs_table(model.costs, model.inputs)


def _stock_report(name: str, model: StockInspection, lengths: Sequence[int]) -> Iterator[Part]:
    from ..mechanisms.common.options import write_numbers

    attention = {}
    if model.layers:
        runs = model.implementation
        if runs != "sdpa":
            runs = f"eager, since {model.class_name} does not support SDPA"
        if model.flash:
            runs += "; flash attention on GPUs"
        attention = {"transformers": runs, "longattn": model.verdict()}
    yield {
        "model": f"{name}  ({model.class_name}, model type {model.model_type})",
        "parameters": f"{model.parameters:,}",
        **attention,
    }
    layers = [
        (write_numbers(numbers), module, f"{layer.heads}", str(layer))
        for (module, layer), numbers in model.groups().items()
    ]
    yield table(("layers", "module", "heads", "a query sees"), layers, align="l")
    memory = [
        (f"{length:,}", decimal(stock), decimal(ours))
        for length, stock, ours in model.memory(lengths)
        if stock or ours
    ]
    if memory:
        yield "Estimated memory of mask and scores in one layer, the largest, for one text in fp32:"
        yield table(("tokens", "transformers", "longattn"), memory, align="r")
    for tower, part in model.towers.items():
        yield from _stock_report(f"tower {tower}", part, lengths)


def diagnosis_report(diagnosis: Diagnosis) -> Iterator[Part]:
    from ..inspect.diagnosis import percent

    yield Styled(diagnosis.conclusion(), "bold")
    yield from filter(None, (diagnosis.dilution(), diagnosis.reach(), *diagnosis.notes))
    rows = []
    for number, layer in enumerate(diagnosis.last.layers):
        effective = [
            f"{float(row.layers[number].numbers['effective_tokens'].mean()):,.1f}" for row in diagnosis.lengths
        ]
        shares = [percent(float(layer.numbers[name].mean())) for name in ("largest_weight", "first_tokens")]
        rows.append((str(number), *effective, *shares))
    columns = (
        "layer",
        *(f"eff. tokens\nof {row.length:,}" for row in diagnosis.lengths),
        "largest\nweight",
        "first\ntokens",
    )
    yield table(columns, rows, "mean over the heads of a layer", align="r")
    title = f"kept of the attention at {diagnosis.last.length:,} tokens; cost as a share of full attention's"
    candidates = []
    for number in diagnosis.applicable():
        least, where = diagnosis.least(number)
        kept, cost = percent(diagnosis.mass(number)), percent(diagnosis.cost(number))
        candidates.append((str(diagnosis.candidates[number]), kept, f"{percent(least)} ({where})", cost))
    yield table(("mechanism", "kept", "least (layer)", "cost"), candidates, title)
    for why, names in (
        ("not measured for", diagnosis.reasons),
        ("not chosen, since positions need training", diagnosis.untrained),
    ):
        if names:
            yield f"{why}: {', '.join(sorted(names))} (--json says why)\n"
    chosen = diagnosis.chosen()
    if chosen is not None:
        model = "the checkpoint that this model was made from" if diagnosis.is_long else "the model"
        yield Line(f"To convert {model} so, add to longattn convert:\n  {shlex.join(diagnosis.flags(chosen))}")


def mechanisms(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Describe this one, with its options.", show_default=False)
    ] = None,
    as_json: flags.Json = False,
) -> None:
    """List the attention mechanisms, or describe one in full."""
    from ..mechanisms import list_mechanisms, mechanism_info  # imports torch
    from ..mechanisms.common.registry import input_in_words

    infos = [mechanism_info(each) for each in ([name] if name else list_mechanisms())]
    causal = {"both": "both", True: "only", False: "no"}
    if name is None:
        rows = [(info.name, info.summary, info.cost, causal[info.causal]) for info in infos]
        listed = (
            table(("name", "what it does", "cost", "causal"), rows, align="l"),
            "Options of each: longattn mechanisms NAME",
        )
        show({"mechanisms": [asdict(info) for info in infos]}, listed, as_json=as_json)
        return
    info = infos[0]
    facts = {field: getattr(info, field) for field in ("name", "summary", "when", "paper", "cost")}
    facts |= {
        "causal": causal[info.causal],
        "equals full attention": info.exact_when,
        "input": input_in_words(info.name),
    }
    facts["adds parameters"] = {True: "yes: needs training", False: "no"}[info.trains]
    facts["global tokens"] = {True: "taken (global_attention_mask)", False: "not taken"}[info.takes_globals]
    about: list[Part] = [facts]
    for option in info.options:
        unit = f", in {option.unit}" if option.unit else ""
        about.append(
            Styled(f"\n{option.name}  {option.type_in_words}{unit}, default {option.readable(option.default)}", "bold")
        )
        about.append(Padding(option.help, (0, 0, 0, 4)))
    show(asdict(info), about, as_json=as_json)


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Print this one, to copy or edit it.", show_default=False)
    ] = None,
) -> None:
    """List the recipes for --config and accelerate, or print one."""
    from ..errors import OptionError, nearest
    from ..files import read_text
    from ..training.recipes import ready_recipes

    ready = ready_recipes()
    if name is None:
        rows = sorted((recipe.command, recipe.name, recipe.title) for recipe in ready.values())
        show(
            {},
            (
                table(("command", "recipe", ""), rows, align="l"),
                "The values of each, and their source: longattn recipes NAME",
            ),
        )
        return
    if name not in ready:
        raise OptionError(f"There is no recipe {name!r}.{nearest(name, ready) or ' `longattn recipes` lists them.'}")
    show({}, [Line(read_text(ready[name].path).removesuffix("\n"))])
