"""The commands for checkpoints: `longattn convert`, `plan`, `search`, `export`, `compress` and `push`.

`convert` and `plan` have a flag for every setting of :class:`~hf_longattn.ConversionConfig`, and `search` has one for
every setting of :class:`.SearchConfig`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.filesize import decimal, pick_unit_and_suffix
from rich.styled import Styled

from ..conversion import ConversionConfig
from ..search.budget import SearchConfig
from . import flags
from .terminal import Line, Part, facts, progress, show, table

if TYPE_CHECKING:
    from ..conversion import ConversionPlan, ConversionReport
    from ..export import CompressionReport, ExportReport
    from ..modeling.costs import LengthCost
    from ..modeling.family.input_spec import InputSizes
    from ..reports import Check
    from ..search.search import SearchResult

Source = Annotated[str, flags.model_argument("A checkpoint", "SRC")]
COLOURS = {"passed": "green", "failed": "bold red", "needs training": "yellow", "measured": "cyan", "skipped": "dim"}
"""Status of a check -> its style in a terminal."""


@flags.takes_settings(ConversionConfig)
def convert(
    source: Source,
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to make.")],
    config: ConversionConfig,
    recipe: flags.Recipe = None,
    as_json: flags.Json = False,
) -> None:
    """Convert a short checkpoint into a long one and check it.

    DST appears complete and verified, or not at all.
    """
    if config.verify_text is not None and not config.verify:
        raise typer.BadParameter("contradicts --no-verify.", param_hint="--verify-text")
    from ..conversion import convert_checkpoint

    with progress() as tell:
        report = convert_checkpoint(source, destination, config, choose=_choose, progress=tell)
    show({"destination": str(report.destination), **report.to_dict()}, conversion_report(report), as_json=as_json)


@flags.takes_settings(ConversionConfig)
def plan(source: Source, config: ConversionConfig, recipe: flags.Recipe = None, as_json: flags.Json = False) -> None:
    """Show what `longattn convert` with these options would do.

    Prints the result, its layers, and what it costs at each length.
    """
    from ..conversion import plan_conversion

    plan = plan_conversion(source, None, config, choose=_choose)
    show(plan.to_dict(), _plan_report(plan), as_json=as_json)


@flags.takes_settings(SearchConfig)
def search(
    model: Annotated[str, flags.model_argument("A checkpoint that is not converted yet")],
    text: Annotated[
        Path,
        typer.Argument(
            metavar="TEXT", help="What the model will read: a UTF-8 text file, or a folder of images or recordings."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The new YAML file of the design, for `longattn convert --config`.")],
    config: SearchConfig,
    as_json: flags.Json = False,
) -> None:
    """Choose a mechanism for every layer under a budget.

    The budget limits time. The search measures the share of every layer's attention that each candidate
    keeps, and its cost on this machine. Convert the result with `longattn convert MODEL DST --config OUTPUT`.
    """
    from ..search import search_design

    with progress() as tell:
        result = search_design(model, text, output, config, progress=tell)
    show(result.to_dict(), search_report(result), as_json=as_json)


def export(
    context: typer.Context,
    model: Annotated[str, flags.model_argument("A checkpoint, long or not")],
    destination: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    format: Annotated[
        str, typer.Option(help="onnx, openvino, torch (torch.export.load), or native (a stock model of transformers).")
    ] = "onnx",
    opset: Annotated[int | None, typer.Option(min=18, max=25, help="ONNX opset.", show_default="PyTorch's")] = None,
    task: Annotated[
        str | None,
        typer.Option(help="The head's task, for example feature-extraction.", show_default="the saved head's"),
    ] = None,
    global_attention_mask: Annotated[
        bool,
        typer.Option(
            "--global-attention-mask", help="Make it an input; otherwise the config determines the global tokens."
        ),
    ] = False,
    overwrite: flags.Overwrite = False,
    as_json: flags.Json = False,
    revision: flags.Revision = None,
    token: flags.Token = None,
) -> None:
    """Export a checkpoint as a graph, or a long one as a stock checkpoint.

    The result is checked. A graph takes any batch size and length, with memory linear in the length. OUT appears
    complete, and equal to the model at three lengths, or not at all.
    """
    from ..export import export_checkpoint, export_native

    shared: dict[str, Any] = {"overwrite": overwrite, "revision": revision, "token": token}
    graph_settings: dict[str, Any] = {"opset": opset, "task": task, "global_attention_mask": global_attention_mask}
    unused = {"onnx": (), "native": tuple(graph_settings)}.get(format, ("opset",))
    flags.refuse_typed(context, unused, f"has no effect with --format {format}; leave one of them out.")
    report: Any
    with progress() as tell:
        if format == "native":
            report = export_native(model, destination, progress=tell, **shared)
            parts = conversion_report(report)
        else:
            report = export_checkpoint(model, destination, format=format, progress=tell, **graph_settings, **shared)
            parts = export_report(report)
    show({"destination": str(report.destination), **report.to_dict()}, parts, as_json=as_json)


def compress(
    context: typer.Context,
    model: Annotated[str, flags.model_argument("A checkpoint, long or not")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")],
    method: Annotated[str, typer.Option(help="int8, int8-weight-only, bf16 or prune-heads.")],
    share: Annotated[float, typer.Option(help="Share of the heads to prune.")] = 0.25,
    text: Annotated[
        Path | None,
        typer.Option(help="UTF-8 text to measure importance and losses on.", show_default="built-in English"),
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens of the long inputs.", show_default="4,096, or what model and text have")
    ] = None,
    documents: Annotated[int, typer.Option(help="Pieces of the text to measure on.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of masked tokens.")] = 0,
    overwrite: flags.Overwrite = False,
    as_json: flags.Json = False,
    revision: flags.Revision = None,
    token: flags.Token = None,
) -> None:
    """Write a smaller checkpoint, and measure what it costs.

    torchao quantises the weights; from_pretrained loads the result if torchao is installed. The result is read again
    and compared. Its loss at short and long lengths, its time and its size are printed next to the source's, and
    written to compression_report.json.
    """
    from ..export import compress_checkpoint

    if method != "prune-heads":
        flags.refuse_typed(context, ("share",), f"is for prune-heads, not for --method {method}; leave it out.")
    report = compress_checkpoint(
        model,
        destination,
        overwrite=overwrite,
        revision=revision,
        token=token,
        method=method,
        share=share,
        text=text,
        length=length,
        documents=documents,
        seed=seed,
    )
    show(report.to_dict(), compression_report(report), as_json=as_json)


def push(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The folder of a saved model.")],
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="NAME or USER/NAME on the Hub; created if it does not exist.")
    ],
    private: flags.Private = False,
    revision: Annotated[
        str | None, typer.Option(help="A branch; created if it does not exist.", show_default="main")
    ] = None,
    commit_message: Annotated[str | None, typer.Option(help="Commit message.", show_default="Upload FOLDER")] = None,
    remote_code: flags.RemoteCode = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files, and upload nothing.")] = False,
    token: flags.Token = None,
    as_json: flags.Json = False,
) -> None:
    """Upload a model to the Hub in one commit, with its card.

    The files that belong to the model are listed first; others are left out. Files of the repository stay if the
    folder does not have them. After a broken connection, run the same command again: large files that have arrived
    are not uploaded again.
    """
    from ..hub import push_model

    pushed = push_model(
        model,
        repo,
        private=private,
        revision=revision,
        commit_message=commit_message,
        remote_code=remote_code,
        dry_run=dry_run,
        token=token,
    )
    if dry_run:
        show(asdict(pushed), [Line("Nothing was uploaded.")], as_json=as_json)
        return
    commit = f"{len(pushed.files)} files in commit {pushed.commit[:12]} on {pushed.revision}; card: {pushed.card}"
    if pushed.left_out:
        commit += f"; left out: {len(pushed.left_out)}"
    show(asdict(pushed), [Line(pushed.url), Line(f"{commit}.")], as_json=as_json)


def _choose(source: Any, config: ConversionConfig) -> tuple[Any, Mapping[str, Any]]:
    """Choose the mechanisms for ``--mechanism auto``. The search is imported here, because imports take seconds."""
    from ..search import choose_mechanisms

    return choose_mechanisms(source, config)


def _plan_report(plan: ConversionPlan) -> Iterator[Part]:
    """The plan as printed: the result, warnings, and the mechanisms and costs of the model or of each tower."""
    positions = plan.positions
    if plan.position_change:
        positions += f"  ({plan.position_change}: needs training)"
    yield {
        "source": f"{plan.source.name}  ({plan.architecture.source_class}, {plan.input_in_words('old')})",
        "result": f"{plan.architecture.long_class}, {plan.input_in_words('new')}, {plan.parameters:,} parameters",
        "texts": plan.lengths_in_words,
        "positions": positions,
        "towers as in their class": ", ".join(plan.other_towers),
    }
    yield from (Styled(f"\nWarning: {warning}", "yellow") for warning in plan.warnings)
    if plan.choice is not None:
        yield Styled(f"\n{plan.choice['reason']}", "bold")
    for name, part in plan.parts.items():
        if name:
            yield Styled(f"\ntower {name}: {part.input_in_words('new')}", "bold")
        else:
            yield ""
        yield part.attention.table(part.shape.layers)
        if part.decoder is not None:
            yield f"\ndecoder, {part.decoder.old} → {part.decoder.new} tokens"
            yield part.config.decoder_attention.table(part.config.decoder_layers)
        yield ""
        yield costs_table(part.costs, part.inputs)


def _flops(count: int) -> str:
    """A number of FLOPs as printed, such as "1.5 GFLOP"."""
    unit, name = pick_unit_and_suffix(count, ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"], 1000)
    return f"{count / unit:.1f} {name}"


def costs_table(costs: Sequence[LengthCost], inputs: InputSizes) -> RenderableType:
    """A table with operations and memory at each length. Columns without any value are left out."""
    columns = {
        inputs.spec.noun: [cost.size.words for cost in costs if inputs.spec.units],
        "tokens": [f"{cost.length:,}" for cost in costs],
        "attention": [_flops(cost.attention_flops) for cost in costs],
        "full attention": [_flops(cost.full_attention_flops) for cost in costs],
        "ratio": [f"{cost.full_attention_flops / max(1, cost.attention_flops):.1f}×" for cost in costs],
        "whole model": [_flops(cost.total_flops) for cost in costs],
        "activations": [decimal(cost.activation_bytes) for cost in costs],
        "decode cache": ["" if cost.cache_bytes is None else decimal(cost.cache_bytes) for cost in costs],
    }
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    title = f"operations and memory for one {inputs.spec.noun}, computed from the model's shape"
    return table([*filled], zip(*filled.values(), strict=True), title, align="r")


def conversion_report(report: ConversionReport) -> Iterator[Part]:
    """The report of a conversion, or of the export of a stock model, as printed."""
    from ..conversion.folders import POSITIONS, READY, WOULD_TELL
    from ..hub import next_step

    plan, path = report.plan, report.destination
    size = plan.get("input", f"{plan['new_length']:,} tokens")  # the export of a stock model has no "input"
    yield {
        "written": f"{path}  ({decimal(report.bytes_written)})",
        "model": f"{plan.get('class', plan['long_class'])}, {size}, positions {plan['positions']}",
        "texts": plan.get("short_texts", ""),
    }
    if "choice" in plan:
        yield Styled(f"\n{plan['choice']['reason']}", "bold")
    if not any(check.name == POSITIONS for check in report.checks):
        yield from (Styled(f"\nWarning: {warning}", "yellow") for warning in plan.get("warnings", ()))
    if not report.checks:
        yield Styled("\nNot verified (--no-verify).", "yellow")
        return
    yield ""
    yield checks(report.checks)
    report_file = report.files[-2]  # the last file is the card
    yield f"\nVerified on {report.text}; details are in {report_file}."
    values = report.deciding.values if report.deciding is not None else {}
    if WOULD_TELL in values:
        yield Styled(f"Not known whether it is {READY}: {values[WOULD_TELL]} would tell.", "yellow")
    elif report.verdict == READY:
        sentence = f"{READY.capitalize()}, as measured on {values['tokens']:,} tokens of {report.text}"
        if "seconds" in values:
            sentence += f", in {values['seconds']:.0f} s"
        yield Styled(f"{sentence}.", "green")
    if report.next_step is not None:
        if path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        begin = "Next" if report.needs_training else "To train it"
        yield Line(f"{begin}: {next_step(report.next_step, str(path))}")


def checks(results: Iterable[Check]) -> Part:
    """The checks, one below the other, each with its status, name and sentence."""
    return facts((Styled(check.status, COLOURS[check.status]), f"{check.name}\n{check.detail}") for check in results)


def export_report(report: ExportReport) -> Iterator[Part]:
    """The report of the export of a graph, for reading."""
    graph_format = report.format
    if report.opset is not None:
        graph_format += f", opset {report.opset}"
    yield {
        "written": f"{report.destination}  ({decimal(report.bytes_written)})",
        "graph": f"{report.class_name}, {graph_format}, any batch size, 2 to {report.max_length:,} tokens",
        "inputs": ", ".join(report.inputs),
        "outputs": ", ".join(report.outputs),
    }
    yield checks(report.checks)


def compression_report(report: CompressionReport) -> Iterator[Part]:
    """The report of a compression, for reading: differences of outputs, and loss, time and size before and after."""
    outputs = [
        f"{name}: " + ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in values.items())
        for name, values in report.outputs.items()
    ]
    yield {
        "written": str(report.destination),
        "method": report.config["method"],
        "changed": report.changed_in_words(),
        "outputs": "; ".join(outputs),
        "measured on": report.text,
    }
    yield table(("", "before", "after"), report.rows())


def search_report(result: SearchResult) -> Iterator[Part]:
    """The result of a search, for reading: the chosen design, the reason, and designs with one candidate."""
    yield Styled(result.reason, "bold")
    yield from filter(None, (result.loss_sentence, *result.notes, " "))
    rows = []
    for layer, name in enumerate(result.chosen.design.names):
        rows.append((f"{layer}", name, f"{result.scores[layer][name]:.3f}"))
    yield table(("layer", "runs", "captured mass"), rows, align="rlr")
    uniform = [(costed.design.names[0], f"{costed.score:.3f}", result.cost_of(costed)) for costed in result.uniform]
    yield table(("design", "captured mass", "cost"), uniform, "the same in every layer")
    if result.reasons:
        yield f"left out: {', '.join(sorted(result.reasons))} (--json says why)"
    length = f"{result.length:,} tokens" if result.sizes is None else str(result.sizes[0])
    yield f"length {length}, cost of attention {result.cost_of(result.chosen)}"
    yield Line(f"written: {result.file}\nnext: {result.command}")
