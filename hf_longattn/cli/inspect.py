"""`longattn inspect MODEL [INPUT]`, `longattn mechanisms [NAME]` and `longattn recipes [NAME]`."""

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

from ..mechanisms.common.options import write_numbers
from . import flags
from .checkpoints import costs_table
from .terminal import Line, Part, progress, show, table

if TYPE_CHECKING:
    from ..inspect import Diagnosis, Inspection, StockInspection
    from ..inspect.real_texts import TextsInspection
    from ..modeling.costs import DecodeState


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
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="A text file. Say what MODEL computes, cuts, pads and keeps of it, and what to type. Repeatable: "
            "the texts are one batch.",
            show_default=False,
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
    as_json: flags.Json = False,
    revision: flags.Revision = None,
    token: flags.Token = None,
) -> None:
    """Show what runs in a checkpoint's layers and why, parameters and cost.

    Of a stock model, show the windows that its layers declare, and the memory that transformers and
    attn_implementation="longattn" need for them. With --text, say what MODEL does with real texts. With INPUT, measure
    instead the attention of every layer as INPUT grows, and what each mechanism would keep of it.
    """
    if file is None:
        flags.refuse_typed(context, ("candidate", "queries", "device"), "requires INPUT; give a text.")
    else:
        flags.refuse_typed(
            context, ("text",), "counts a text's tokens, and INPUT measures one; leave one of them out."
        )
    from ..conversion.source import open_source
    from ..files import is_long
    from ..inspect import diagnose, inspect_checkpoint, inspect_stock
    from ..inspect.real_texts import inspect_texts
    from ..inspect.texts import read_lengths

    # with INPUT: measure the attention of every layer
    if file is not None:
        chosen_lengths = None if lengths is None else read_lengths(lengths)
        with progress() as tell:
            diagnosis = diagnose(
                model,
                file,
                lengths=chosen_lengths,
                queries=queries,
                candidates=candidate,
                device=device,
                revision=revision,
                token=token,
                progress=tell,
            )
        show(diagnosis.to_dict(), diagnosis_report(diagnosis), as_json=as_json)
        return

    # without INPUT: describe a long checkpoint, or a stock model
    source = open_source(model, revision, token, weights=False)
    texts = None
    if is_long(source.config):
        flags.refuse_typed(
            context, ("lengths",), "requires INPUT; the cost of a long checkpoint is shown at several lengths."
        )
        inspection = inspect_checkpoint(model, revision=revision, token=token)
        if text:
            texts = inspect_texts(source, text, inspection)
        values = inspection.to_dict()
        report = _inspection_report(inspection, texts)
    else:
        stock = inspect_stock(model, revision=revision, token=token)
        tokens = read_lengths(lengths or "2K,8K,32K")
        if text:
            texts = inspect_texts(source, text, stock)
            if not lengths:
                tokens = texts.lengths
        values = {"model": model, **stock.to_dict(tokens)}
        report = _stock_report(model, stock, tokens, texts)
    if texts is not None:
        values["texts"] = texts.to_dict()
    show(values, report, as_json=as_json)


def _inspection_report(model: Inspection, texts: TextsInspection | None = None) -> Iterator[Part]:
    """A long checkpoint for reading: its model, mechanisms, state while decoding, and cost.

    With ``texts``, the cost is for their lengths, and what the model does with them takes the place of the state.
    """
    from ..inspect.layers import COLUMNS, planned_length, planned_paths

    class_name = model.class_name
    if model.generic:
        class_name += " of transformers, with mechanisms"
    longest = model.longest_input
    if model.look_back:
        longest = f"of any length: a query looks back {model.look_back:,} positions"
    direction = "causal" if model.shape.causal else "bidirectional"
    yield {
        "model": f"{model.source.name}  ({class_name}, model type {model.model_type})",
        "input": "" if model.towers else f"{longest}, {direction}",
        "parameters": f"{model.parameters:,}  ({decimal(model.parameters * model.shape.element_bytes)})",
        "heads kept": ", ".join(f"{heads} in layer {layer}" for layer, heads in model.kept_heads.items()),
        "towers as in their class": ", ".join(model.other_towers),
    }
    if model.towers:
        for name, tower in model.towers.items():
            yield Styled(f"\ntower {name}", "bold")
            yield from _inspection_report(tower)
        return
    yield f"\n{model.attention.table(len(model.mechanisms))}\n"
    title = f"what runs on this machine for {planned_length(model):,} tokens in fp32, and why"
    yield table(COLUMNS, planned_paths(model).rows(), title, align="l")
    if texts is not None:
        if not model.inputs.spec.units:
            yield costs_table(model.costs_at(texts.lengths), model.inputs)
        yield from _texts_report(texts)
        return
    states: dict[tuple[str, DecodeState], list[int]] = {}  # mechanism and state -> numbers of the layers
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


def _stock_report(
    name: str, model: StockInspection, lengths: Sequence[int], texts: TextsInspection | None = None
) -> Iterator[Part]:
    """A stock model for reading: its attention, the windows of its layers, and memory at ``lengths`` in tokens.

    With ``texts``, the report also says what the model does with them.
    """
    attention = {}
    if model.layers:
        implementation = model.implementation
        if implementation != "sdpa":
            implementation = f"eager, since {model.class_name} does not support SDPA"
        if model.flash:
            implementation += "; flash attention on GPUs"
        attention = {"transformers": implementation, "longattn": model.verdict()}
    yield {
        "model": f"{name}  ({model.class_name}, model type {model.model_type})",
        "parameters": f"{model.parameters:,}",
        **attention,
    }
    groups = model.groups().items()  # module and kind of layer, with the numbers of the layers
    if texts is None:
        layers = [
            (write_numbers(numbers), module, f"{layer.heads}", str(layer)) for (module, layer), numbers in groups
        ]
        yield table(("layers", "module", "heads", "a query sees"), layers, align="l")
    else:
        longest = max(texts.read)
        paths = [(write_numbers(numbers), str(layer), layer.path(longest)) for (_, layer), numbers in groups]
        yield table(("layers", "a query sees", f"under longattn, at {longest:,} tokens"), paths, align="l")
    memory = [
        (f"{length:,}", decimal(stock), decimal(ours))
        for length, stock, ours in model.memory(lengths)
        if stock or ours
    ]
    if memory:
        yield "Estimated memory of mask and scores in one layer, the largest, for one text in fp32:"
        yield table(("tokens", "transformers", "longattn"), memory, align="r")
    elif texts is not None and model.layers:
        yield "No layer stores a mask or scores of N×N, neither in transformers nor under longattn.\n"
    for tower, part in model.towers.items():
        yield from _stock_report(f"tower {tower}", part, lengths)
    if texts is not None:
        yield from _texts_report(texts)


def _texts_report(texts: TextsInspection) -> Iterator[Part]:
    """What a model does with real texts, for reading: their tokens, how many are cut and padded, the decode cache, and
    what to type."""
    from ..inspect.diagnosis import percent
    from ..inspect.real_texts import UNPAD

    shown = 4  # maximum number of texts that are named
    counts = [f"{name}: {count:,} tokens" for name, count in zip(texts.names[:shown], texts.tokens, strict=False)]
    if len(texts.names) > shown:
        counts.append(f"{len(texts.names) - shown} more, {sum(texts.tokens[shown:]):,} tokens")
    cache = ""
    if texts.cache_bytes:
        cache = f"{decimal(texts.cache_bytes)} after {texts.longest:,} tokens"
    if texts.streaming_bytes:
        cache += f"; {decimal(texts.streaming_bytes)} in a StreamingCache, which forgets what is between"
    padding = ""
    if len(texts.tokens) > 1:
        real = sum(texts.read)
        padding = f"{percent(1 - real / texts.padded)} of the {texts.padded:,} tokens that a batch of them computes"
        if UNPAD in [line for _, line in texts.advice]:
            padding += f"; unpad computes {real:,}"
    yield {"texts": "\n".join(counts), "padding": padding, "decode cache": cache}
    total = sum(texts.tokens)
    rows = []
    for limit in texts.limits:
        lost = texts.lost(limit)
        effect = "reads all"
        if lost:
            effect = f"{limit.effect}: {lost:,} tokens ({percent(lost / total)})"
        rows.append((limit.reader, f"{limit.tokens:,}", effect))
    yield table(("limit of", "tokens", "of these texts"), rows, align="lrl")
    if texts.advice:
        yield "What to type: lines with $ in a shell, others in Python after `import hf_longattn`."
    for reason, line in texts.advice:
        prompt = "$ " if line.startswith("longattn ") else ""
        yield Line(f"  {prompt}{line}")
        yield Line(f"      # {reason}")


def diagnosis_report(diagnosis: Diagnosis) -> Iterator[Part]:
    """A diagnosis for reading: the conclusion, each layer's attention by length, and what each mechanism keeps."""
    from ..inspect.diagnosis import percent

    yield Styled(diagnosis.conclusion(), "bold")
    yield from filter(None, (diagnosis.dilution(), diagnosis.reach(), *diagnosis.notes))

    # a row for each layer
    rows = []
    for number, layer in enumerate(diagnosis.last.layers):
        effective = [
            f"{float(measured.layers[number].numbers['effective_tokens'].mean()):,.1f}"
            for measured in diagnosis.lengths
        ]
        shares = [percent(float(layer.numbers[name].mean())) for name in ("largest_weight", "first_tokens")]
        rows.append((str(number), *effective, *shares))
    columns = (
        "layer",
        *(f"eff. tokens\nof {measured.length:,}" for measured in diagnosis.lengths),
        "largest\nweight",
        "first\ntokens",
    )
    yield table(columns, rows, "mean over the heads of a layer", align="r")

    # a row for each mechanism
    title = f"kept of the attention at {diagnosis.last.length:,} tokens; cost as a share of full attention's"
    candidates = []
    for number in diagnosis.applicable():
        least, where = diagnosis.least(number)
        kept, cost = percent(diagnosis.mass(number)), percent(diagnosis.cost(number))
        candidates.append((str(diagnosis.candidates[number]), kept, f"{percent(least)} ({where})", cost))
    yield table(("mechanism", "kept", "least (layer)", "cost"), candidates, title)
    if diagnosis.reasons:
        yield f"not measured for: {', '.join(sorted(diagnosis.reasons))} (--json says why)\n"
    if diagnosis.untrained:
        names = ", ".join(sorted(diagnosis.untrained))
        yield f"not chosen, since positions need training: {names} (--json says why)\n"
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

    infos = [mechanism_info(mechanism) for mechanism in ([name] if name else list_mechanisms())]
    causal = {"both": "both", True: "only", False: "no"}  # a mechanism's forms -> whether it has the causal form
    if name is None:
        rows = [(info.name, info.summary, info.cost, causal[info.causal]) for info in infos]
        report = (
            table(("name", "what it does", "cost", "causal"), rows, align="l"),
            "Options of each: longattn mechanisms NAME",
        )
        show({"mechanisms": [asdict(info) for info in infos]}, report, as_json=as_json)
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
    description: list[Part] = [facts]
    for option in info.options:
        unit = f", in {option.unit}" if option.unit else ""
        heading = f"\n{option.name}  {option.type_in_words}{unit}, default {option.readable(option.default)}"
        description += [Styled(heading, "bold"), Padding(option.help, (0, 0, 0, 4))]
    show(asdict(info), description, as_json=as_json)


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
