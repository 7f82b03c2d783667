"""Readable output: tables or one JSON object on stdout, a progress bar on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.markup import escape
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..evaluation.summaries import plus_minus
from . import terminal

if TYPE_CHECKING:
    from ..audit import ReachAudit
    from ..catalogue import Listed
    from ..conversion import ConversionPlan, ConversionReport, Inspection
    from ..conversion.flops import MechanismCost
    from ..diagnostics import ReceptiveField
    from ..evaluation.probes import ProbeCell, ProbeReport
    from ..export import CompressionReport, ExportReport
    from ..inputs.common.base import InputSizes, LengthCost
    from ..mechanisms import MechanismInfo
    from ..recipes import Recipe

SHOWN_LENGTHS = (0, 2, 4, 6)
"""Indices of the lengths at which mechanisms are compared in the table; the JSON object has all of them."""
STYLES = {"passed": "green", "failed": "bold red", "needs training": "yellow", "measured": "cyan", "skipped": "dim"}


def show_plan(plan: ConversionPlan) -> None:
    """What a conversion would do."""
    console = terminal.console()
    console.print(
        _facts(
            ("source", f"{plan.source.name}  ({plan.architecture.source_class}, {plan.old_input})"),
            ("result", f"{plan.architecture.long_class}, {plan.new_input}, {plan.parameters:,} parameters"),
            *([("texts", said)] if (said := str(plan.short_texts)) else []),
            ("positions", plan.positions + ("" if plan.positions_exact else f"  ({plan.position_change}: needs training)")),
            ("tensors", _counts(plan.counts())),
            ("size", f"{size(plan.source.total_bytes)} → {size(plan.total_bytes)}"),
            *([] if plan.native_twin is None else [("native twin", plan.native_twin.describe())]),
        )
    )
    for tensor in plan.tensors:
        if tensor.action != "kept":
            shapes = " → ".join(str(list(shape)) for shape in (tensor.old_shape, tensor.new_shape) if shape is not None)
            comes_from = "" if tensor.header is None or tensor.action == "dropped" else tensor.header.name
            name = f"{comes_from} → {tensor.name}" if comes_from not in ("", tensor.name) else tensor.name
            why = f"  ({tensor.reason})" if tensor.reason else ""
            console.print(f"  {tensor.action}  {name}  {shapes}{why}", style="dim", highlight=False)
    _show_warnings(console, [*map(str, plan.warnings)])
    console.print()
    if plan.choice is not None:
        console.print(f"{escape(plan.choice['reason'])}\n", style="bold", highlight=False)
    for name, part in plan.parts.items():
        if name:
            console.print(f"tower {name}: {part.new_input}, {_counts(part.counts())} tensors", style="bold", highlight=False)
        _show_attention(part)
    _show_of_plain_class(console, plan)


def _show_of_plain_class(console: terminal.Console, model: ConversionPlan | Inspection) -> None:
    """What is to know of a plain class besides the towers that have mechanisms."""
    for name in model.other_towers:
        console.print(f"tower {name}: the attention of its class", style="bold", highlight=False)
    if model.text_global:
        console.print("Tokens of texts are global in the language model; those of pictures are not.", highlight=False)


def _show_attention(plan: ConversionPlan) -> None:
    """The mechanism of every layer, and what it costs."""
    console = terminal.console()
    console.print(plan.attention.table(plan.shape.layers), highlight=False)
    if plan.decoder is not None:
        console.print(f"\ndecoder, {plan.decoder.old} → {plan.decoder.new} tokens", highlight=False)
        console.print(plan.config.decoder_attention.table(plan.config.decoder_layers), highlight=False)
    if plan.costs:
        console.print()
        show_costs(plan.costs, plan.inputs)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {action}" for action, count in counts.items() if count)


def print_plan(plan: ConversionPlan, *, as_json: bool) -> None:
    """The plan, and the cost of all mechanisms at 1K to 64K tokens, or at sizes of pictures around the new one; of several towers, each."""
    from ..conversion.flops import matrix_speed

    compared = {name: _compared(part) for name, part in plan.parts.items() if not (plan.generic and name)}
    if as_json:
        values = {name: {**sizes, "mechanisms": [asdict(row) for row in rows]} for name, (rows, sizes, _, _) in compared.items()}
        terminal.print_json({**plan.to_dict(), "comparison": values.get("", values)})
        return
    show_plan(plan)
    for name, (rows, _, headings, unit) in compared.items():
        if name:
            terminal.console().print(f"\ntower {name}", style="bold", highlight=False)
        show_comparison(rows, headings, matrix_speed(), unit)


def _compared(plan: ConversionPlan) -> tuple[Sequence[MechanismCost], dict[str, Any], list[str], str]:
    """The costs of all mechanisms, the sizes at which they are compared, these in words, and what one input is called."""
    from ..conversion.flops import compare_at_sizes

    sizes = plan.inputs.doublings(plan.architecture.source_config)
    rows = compare_at_sizes(plan.attention, plan.shape, sizes, plan.inputs.kind.mechanisms(plan.shape.causal))
    return rows, plan.inputs.compared_values(sizes), [size.heading for size in sizes], _one(plan.inputs)


def _one(inputs: InputSizes) -> str:
    """What one input is called in a table of costs."""
    return inputs.noun if inputs.units else "sequence"


def show_comparison(rows: Sequence[MechanismCost], headings: Sequence[str], speed: float, unit: str = "sequence") -> None:
    """Each mechanism's cost for one ``unit``, at the longest of the lengths where not all fit side by side; then why others have none."""
    console = terminal.console()
    shown = [index for index in SHOWN_LENGTHS if index < len(headings)] if len(headings) > len(SHOWN_LENGTHS) else range(len(headings))
    tables = [_comparison(rows, headings, speed, shown[start:], unit) for start in range(len(shown))]
    unbounded = console.options.update(max_width=10 * console.width)
    fitting = (table for table in tables if Measurement.get(console, unbounded, table).maximum <= console.width)
    console.print(next(fitting, tables[-1]), highlight=False)
    for row in rows:
        if row.refused:
            console.print(f"{row.mechanism}: {escape(row.refused)}", style="dim", highlight=False)


def _comparison(rows: Sequence[MechanismCost], headings: Sequence[str], speed: float, shown: Sequence[int], unit: str) -> Table:
    counted = [row for row in rows if not row.refused]
    same = len({row.bytes for row in counted}) == 1  # an encoder has no cache, and its largest activation is not in attention
    title = f"least seconds for one {unit} through the whole model, at this machine's {speed / 1e9:,.0f} GFLOP/s"
    table = _table([], title if same else f"{title} / memory besides the weights")
    table.add_column("mechanism", no_wrap=True)
    for index in shown:
        table.add_column(headings[index], justify="right", no_wrap=True)
    for row in counted:
        seconds = [_number(row.flops[index] / speed) for index in shown]
        memory = ["" if same else f" / {_round(row.bytes[index])}" for index in shown]
        table.add_row(row.mechanism, *map("".join, zip(seconds, memory, strict=True)))
    if same:
        table.add_section()
        table.add_row("memory besides the weights", *(_round(counted[0].bytes[index]) for index in shown))
    return table


def _round(count: int) -> str:
    """A size without decimals, so that four columns and the names fit into 80 characters."""
    number, unit = size(count).split()
    return f"{float(number.replace(',', '')):,.0f} {unit}"


def _number(seconds: float) -> str:
    return f"{seconds:.2g}" if seconds < 100 else f"{seconds:,.0f}"


def _grown(plan: Mapping[str, Any]) -> str:
    """The longest input of source and result."""
    if "input" in plan:
        return str(plan["input"])
    if "towers" in plan:
        return "; ".join(f"{name} {_grown(tower)}" for name, tower in plan["towers"].items())
    old, new = plan["old_length"], plan["new_length"]
    if "new_image_size" in plan:
        before, after = ("×".join(map(str, plan[name])) for name in ("old_image_size", "new_image_size"))
        return f"{before} → {after} pixels, {old:,} → {new:,} tokens"
    if "new_video_size" in plan:
        before, after = ("×".join(map(str, plan[name])) for name in ("old_video_size", "new_video_size"))
        return f"{before} → {after} frames and pixels, {old:,} → {new:,} tokens"
    if "new_spectrogram_size" in plan:
        before, after = (f"{plan[name][1]:,}" for name in ("old_spectrogram_size", "new_spectrogram_size"))
        return f"{before} → {after} frames, {old:,} → {new:,} tokens"
    if "new_audio_seconds" in plan:
        return f"{plan['old_audio_seconds']:,g} → {plan['new_audio_seconds']:,g} seconds, {old:,} → {new:,} frames"
    if "new_context_length" in plan:
        return f"{plan['old_context_length']:,} → {plan['new_context_length']:,} steps, {old:,} → {new:,} tokens"
    length = f"{new} tokens" if new else "any number of tokens"
    return f"{old} → {length}" if old else length


def show_costs(costs: Sequence[LengthCost], inputs: InputSizes) -> None:
    """Cost at each length or size of one input."""
    decodes = any(cost.cache_bytes is not None for cost in costs)
    headings = [
        *([inputs.units] if inputs.units else []),
        inputs.token_unit,
        "attention",
        "full attention",
        "ratio",
        "whole model",
        "activations",
        *(["decode cache"] if decodes else []),
    ]
    table = _table(headings, f"operations and memory for one {_one(inputs)}, computed from the model's shape", justify="right")
    for cost in costs:
        row = [
            *([cost.shown_size] if inputs.units else []),
            f"{cost.length:,}",
            flops(cost.attention_flops),
            flops(cost.full_attention_flops),
            f"{cost.full_attention_flops / max(1, cost.attention_flops):.1f}×",
            flops(cost.total_flops),
            size(cost.activation_bytes),
        ]
        table.add_row(*row, *([size(cost.cache_bytes or 0)] if decodes else []))
    terminal.console().print(table)


def show_report(report: ConversionReport) -> None:
    """What was written, and the checks."""
    from ..conversion.report import POSITIONS, READY
    from ..hub.usage import next_step

    console = terminal.console()
    plan = report.plan
    class_name = plan.get("class", plan["long_class"])
    console.print(
        _facts(
            ("written", f"{report.destination}  ({size(report.bytes_written)} in {report.seconds['convert']:.1f} s)"),
            ("model", f"{class_name}, {_grown(plan)}, positions {plan['positions']}"),
            *([("texts", _short_texts(report))] if "short_texts" in plan else []),
            ("tensors", _counts(plan["tensor_counts"])),
        )
    )
    if "choice" in plan:
        console.print(f"\n{escape(plan['choice']['reason'])}", style="bold", highlight=False)
    if not any(check.name == POSITIONS for check in report.checks):
        _show_warnings(console, plan.get("warnings", ()))
    if not report.checks:
        console.print("\nNot verified (--no-verify).", style="yellow")
        return
    console.print()
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in report.checks:
        table.add_row(f"[{STYLES[check.status]}]{check.status}[/]", f"{check.name}\n[dim]{escape(check.detail)}[/]")
    console.print(table, highlight=False)
    console.print()
    console.print(f"Verified in {report.seconds['verify']:.1f} s on {report.text}; details are in {report.files[-2]}.", highlight=False)
    if report.verdict == READY:
        console.print(f"{READY.capitalize()}.", style="green")
    if report.next_step is not None:
        command = next_step(report.next_step, _as_typed(report.destination))
        console.print(f"Next: {escape(command)}", highlight=False, soft_wrap=True)


def _short_texts(report: ConversionReport) -> str:
    """What a conversion says first of short texts: what was planned or, where that was verified, the largest difference."""
    from ..checks import PASSED
    from ..conversion.report import SHORT_TEXTS

    for check in report.checks:
        if check.name == SHORT_TEXTS and check.status == PASSED:
            length, difference = check.values["length"], check.values["relative_difference"]
            return f"of up to {length} tokens: outputs equal the source's (largest difference {difference:.1e})"
    return str(report.plan["short_texts"])


def _as_typed(path: Path) -> str:
    """A path from the working directory, if it is in there, or the whole path."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _show_warnings(console: terminal.Console, sentences: Sequence[str]) -> None:
    for sentence in sentences:
        console.print(f"\nWarning: {escape(sentence)}", style="yellow", highlight=False)


def show_audit(audit: ReachAudit) -> None:
    """What a config says of its tokens' reach, and what was measured."""
    console = terminal.console()
    pooled = bool(audit.probes)
    cost = f"{audit.runs:,} runs in {audit.seconds:,.0f} s"
    replaced = f"; replaced, one at a time: {', '.join(f'{position:,}' for position in audit.probes)}" if pooled else ""
    console.print(
        _facts(("config", audit.model), ("audited", audit.subject), ("tokens", f"{audit.length:,}{replaced}"), ("cost", cost)),
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "mechanism", *(() if pooled else ("config: back, ahead", "measured")), "verdict"):
        table.add_column(column, overflow="fold")
    for stage in audit.stages:
        reach = () if pooled else tuple(f"{back:,}, {ahead:,}" for back, ahead in (stage.declared, stage.measured))
        verdict = f"[bold red]{escape(stage.problem)}[/]" if stage.problem else "[green]agrees[/]"
        table.add_row(stage.stage, escape(stage.mechanism), *reach, verdict)
    console.print(table)
    if audit.note:
        console.print(audit.note, highlight=False)
    if not audit.exhaustive and audit.tested < 1:
        seconds = audit.seconds / audit.runs * audit.exhaustive_runs
        console.print(
            f"Tested: {int(1000 * audit.tested) / 10} % of the outputs and tokens that the config keeps apart; --exhaustive tests all "
            f"of them, in {audit.exhaustive_runs:,} runs, some {_duration(seconds)}.",
            highlight=False,
        )
    if audit.agrees:
        console.print("The outputs that changed are those that the config lets these tokens reach.", style="green", highlight=False)
    else:
        console.print("What runs is not what the config says.", style="bold red", highlight=False)


def _duration(seconds: float) -> str:
    """ "12 s", "3 minutes" or "2.5 hours"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def show_compression(report: CompressionReport) -> None:
    """What a compression costs and saves."""
    console = terminal.console()
    console.print(
        _facts(
            ("written", str(report.destination)),
            ("method", report.config["method"]),
            ("changed", report.changed_in_words()),
            ("outputs", _accuracy(report.outputs)),
            ("measured on", report.text),
        )
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "before", "after"):
        table.add_column(column, overflow="fold", justify="left" if not column else "right")
    for row in report.rows():
        table.add_row(*row)
    console.print(table)


def show_probe(report: ProbeReport) -> None:
    """The scores of each task by length, and by depth where depths were given."""
    console = terminal.console()
    console.print(_facts(("model", f"{report.model}  ({report.class_name})"), ("asked", ASKED[report.mode])))
    cells = {(cell.task, cell.depth, cell.length): cell for cell in report.cells}
    depths = any(cell.depth is not None for cell in report.cells)
    chances = any(cell.chance is not None for cell in report.cells)
    headings = ["task", *(["depth"] if depths else []), *(f"{length:,}" for length in report.lengths), *(["chance"] if chances else [])]
    samples = report.cells[0].samples
    measured = "percent right" if report.cells[0].error is None else "percent right ± standard error"
    title = f"{measured}, by tokens of a text; {samples} text{'s' * (samples > 1)} each"
    table = _table(headings, title, justify="right")
    table.columns[0].justify = "left"
    for task, depth in dict.fromkeys((cell.task, cell.depth) for cell in report.cells):
        row = [cells[task, depth, length] for length in report.lengths]
        where = ["–" if depth is None else f"{depth:g}"] if depths else []
        by_chance = [f"{row[-1].chance:.0f}"] if row[-1].chance is not None else [""] * chances
        table.add_row(task, *where, *(plus_minus(cell.score, cell.error, 0) for cell in row), *by_chance)
    console.print(table)


def show_receptive_field(field: ReceptiveField) -> None:
    """How much features change by distance from a patch that was replaced, and how far that reaches."""
    console = terminal.console()
    timed = field.cell_seconds is not None
    files = f"{len(field.pictures)} {'recording' if timed else field.noun}s" if len(field.pictures) > 1 else "".join(field.pictures)
    duration = f"{field.image_size[0] / field.patch[0] * (field.cell_seconds or 0):,.3g} s"
    read = duration if timed else f"{_sides(field.image_size)} {field.units}"
    what = f"frames of {1000 * (field.cell_seconds or 0):g} ms" if timed else f"patches of {_sides(field.patch)} {field.units}"
    console.print(
        _facts(
            ("model", f"{field.model}  ({field.model_class})"),
            ("layers", ", ".join(field.mechanisms) or "as the base attends"),
            ("read", f"{files}: {read}, {field.grid}"),
            (
                "replaced",
                f"{field.samples} {what} in each {field.noun}, one at a time, by {field.cells} of the same {field.noun}",
            ),
        )
    )
    runs = [changes for changes in (field.measured, field.full) if changes is not None]
    table = _table(
        [
            f"{field.cells} away",
            *(["seconds away"] if timed else []),
            "pairs",
            "change",
            *([field.base_attention] if field.full is not None else []),
        ],
        "mean change of features ÷ their norm",
        justify="right",
    )
    table.columns[0].justify = "left"
    for rows in zip(*(changes.bins() for changes in runs), strict=True):
        away = [f"{rows[0].last * (field.cell_seconds or 0):.3g}"] if timed else []
        table.add_row(str(rows[0]), *away, f"{rows[0].pairs:,}", *(f"{row.change:.3g}" for row in rows))
    if field.grid.prefix:
        table.add_row(field.prefix_name, f"{field.measured.prefix_pairs:,}", *(f"{changes.prefix_change:.3g}" for changes in runs))
    console.print(table)
    console.print(field.conclusion(), highlight=False)


def _sides(sizes: Sequence[int]) -> str:
    return " × ".join(map(str, sizes))


ASKED = {
    "generate": "answers are generated greedily",
    "likelihood": "right answers are compared with wrong ones by likelihood",
    "span": "answers are marked in the text",
}


@contextlib.contextmanager
def probe_progress(quiet: bool) -> Iterator[Callable[[ProbeCell], None]]:
    """Yields the `progress` argument of `probe_model`: a line on stderr for each cell, on a terminal."""
    console = terminal.console(stderr=True)

    def tell(cell: ProbeCell) -> None:
        if console.is_terminal and not quiet:
            where = "" if cell.depth is None else f", depth {cell.depth:g}"
            console.print(f"{cell.task}, {cell.length:,} tokens{where}: {cell.score:.0f} %", style="dim", highlight=False)

    yield tell


def show_export(report: ExportReport) -> None:
    """What was written, its inputs and outputs, and the comparison with the model."""
    console = terminal.console()
    form = report.format if report.opset is None else f"{report.format}, opset {report.opset}"
    inputs = f"{report.min_length:,} to {report.max_length:,} tokens"
    if report.image_size is not None:
        inputs = f"pictures of {' × '.join(map(str, report.image_size))} pixels"
    console.print(
        _facts(
            ("written", f"{report.destination}  ({size(report.bytes_written)})"),
            (
                "file" if report.format == "gguf" else "graph",
                f"{report.class_name}, {form}, any batch size, {inputs}",
            ),
            ("inputs", _without_state(report, report.inputs)),
            ("outputs", _without_state(report, report.outputs)),
            *((check.status, f"{check.name}: {check.detail}") for check in report.checks),
            *([] if report.int8 is None else [("int8", _int8(report.int8))]),
        )
    )


def _without_state(report: ExportReport, names: Sequence[str]) -> str:
    """The names of inputs or outputs; of a decoder's state only how many there are, since every layer has some."""
    state = [] if report.decoding is None else report.decoding["state"]
    held = {row[end] for row in state for end in ("input", "output")}
    return ", ".join([name for name in names if name not in held] + ([f"{len(state)} tensors of the state"] if state else []))


def _int8(int8: dict[str, Any]) -> str:
    """The quantised copy beside the graph, in a line."""
    seconds, sizes = int8["seconds"], int8["bytes"]
    timed = f"{seconds['tokens']:,} tokens" if "tokens" in seconds else "a picture"
    return (
        f"{int8['file']}, {size(sizes['int8'])} instead of {size(sizes['float32'])};"
        f" {timed} in {seconds['int8']:.2f} s instead of {seconds['float32']:.2f} s,"
        f" {seconds['threads']} threads; {_accuracy(int8['outputs'])}"
    )


def _accuracy(outputs: Mapping[str, Mapping[str, float]]) -> str:
    """How near each output is to the unquantised model's."""
    return "; ".join(
        f"{name}: " + ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in values.items()) for name, values in outputs.items()
    )


def show_inspection(model: Inspection) -> None:
    """A checkpoint: its model, mechanisms, state and cost."""
    console = terminal.console()
    of_transformers = " of transformers, with mechanisms" if model.generic else ""
    kind = f"{model.class_name}{of_transformers}, model type {model.model_type}"
    if model.apart:
        facts = [("model", f"{model.source.name}  ({kind})")]
        facts.append(("parameters", f"{model.parameters:,}  ({size(model.nbytes)} in {model.tensors} tensors)"))
        console.print(_facts(*facts))
        for name, tower in model.towers.items():
            console.print(f"\ntower {name}", style="bold", highlight=False)
            show_inspection(tower)
        _show_of_plain_class(console, model)
        return
    pruned = ", ".join(f"{heads} in layer {layer}" for layer, heads in model.kept_heads.items())
    console.print(
        _facts(
            ("model", f"{model.source.name}  ({kind})"),
            ("input", f"{model.longest_input}, {'causal' if model.causal else 'bidirectional'}"),
            ("parameters", f"{model.parameters:,}  ({size(model.nbytes)} in {model.tensors} tensors)"),
            *([("pruned heads", f"{pruned} kept")] if pruned else []),
        )
    )
    console.print()
    console.print(model.attention.table(len(model.mechanisms)), highlight=False)
    console.print()
    if model.states:
        console.print(_state_table(model), highlight=False)
    if model.costs:
        show_costs(model.costs, model.inputs)


def _state_table(model: Inspection) -> Table:
    """The decode state of each run of equal layers."""
    headings = ["layers", "mechanism", "state", "added by each further token"]
    table = _table(headings, f"state of each layer while decoding a sequence of {model.max_length:,} tokens")
    first = 0
    for (name, state), run in groupby(zip((mechanism.name for mechanism in model.mechanisms), model.states, strict=True)):
        last = first + len(list(run)) - 1
        layers = f"{first}-{last}" if last > first else str(first)
        table.add_row(layers, name, size(state.bytes), size(state.per_token) if state.per_token else "nothing")
        first = last + 1
    return table


def show_mechanisms(infos: Sequence[MechanismInfo | Listed]) -> None:
    """One line per mechanism."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("name", no_wrap=True)
    for heading in ("what it does", "cost", "causal"):
        table.add_column(heading, overflow="fold")
    for info in infos:
        causal = {"both": "both", True: "only", False: "no"}[info.causal]
        table.add_row(info.name, escape(info.summary), info.cost, causal)
    console = terminal.console()
    console.print(table)
    console.print("Options of each: longattn mechanisms NAME", highlight=False)


def show_recipes(recipes: Sequence[Recipe]) -> None:
    """The recipes of each command: name and title, with the published score below."""
    console = terminal.console()
    width = max(len(recipe.name) for recipe in recipes)
    for command, group in groupby(sorted(recipes, key=lambda recipe: recipe.command), key=lambda recipe: recipe.command):
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, min_width=width)
        table.add_column()
        for recipe in group:
            table.add_row(recipe.name, escape(recipe.entries["title"]))
            if score := recipe.entries.get("score"):
                table.add_row("", f"Published: {escape(score)}", style="dim")
        console.print(command, style="bold", highlight=False)
        console.print(Padding(table, (0, 0, 1, 2)))
    console.print("The commands of each, its values and their source: longattn recipes NAME", highlight=False)


def show_mechanism(info: MechanismInfo) -> None:
    """One mechanism in full."""
    from ..mechanisms.common.registry import input_in_words

    console = terminal.console()
    console.print(
        _facts(
            ("name", info.name),
            ("summary", info.summary),
            *[("when", info.when)] * bool(info.when),
            ("paper", info.paper),
            ("cost", info.cost),
            ("causal", {"both": "causal and bidirectional", True: "causal only", False: "bidirectional only"}[info.causal]),
            ("equals full attention", info.exact_when),
            ("adds parameters", "yes: needs training" if info.trains else "no"),
            ("global tokens", "taken (global_attention_mask)" if info.takes_globals else "not taken"),
            ("input", input_in_words(info.name)),
            ("engine", info.engine),
        )
    )
    if not info.options:
        console.print("\nno options")
        return
    for option in info.options:
        console.print()
        unit = f", in {option.unit}" if option.unit else ""
        console.print(
            f"[bold]{option.name}[/]  {escape(option.type_in_words)}{unit}, default {escape(option.readable(option.default))}",
            highlight=False,
        )
        console.print(Padding(escape(option.help), (0, 0, 0, 4)), highlight=False)


def size(count: int) -> str:
    """Bytes in readable units."""
    return _in_units(count, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))) or f"{count} B"


def flops(count: int) -> str:
    """Floating-point operations in readable units."""
    return _in_units(count, (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9))) or f"{count / 1e6:.1f} MFLOP"


def _in_units(count: int, units: Sequence[tuple[str, float]]) -> str:
    return next((f"{count / scale:.1f} {unit}" for unit, scale in units if count >= scale), "")


def _table(headings: Sequence[str], title: str, justify: Literal["left", "right"] = "left") -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, collapse_padding=True, title=title, title_style="dim", title_justify="left")
    for heading in headings:
        table.add_column(heading, justify=justify)
    return table


def _facts(*pairs: tuple[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, escape(value))
    return table


@contextlib.contextmanager
def conversion_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yields the `progress` argument of `convert_checkpoint`."""
    console = terminal.console(stderr=True)
    if not console.is_terminal:  # rich before 15 ends even a disabled bar with an empty line
        yield lambda stage, done, total: None
        return
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task({"write": "Writing", "verify": "Verifying"}[stage], total=total, count="")
            count = f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB" if stage == "write" else f"{done} of {total} checks"
            bars.update(tasks[stage], completed=done, count=count)

        yield advance
