"""What the commands report of plans, conversions, checkpoints, exports and mechanisms; progress bars on stderr."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal, pick_unit_and_suffix
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ..reports import Fact, Report, Style, Table
from . import terminal

if TYPE_CHECKING:
    from ..conversion import ConversionPlan, ConversionReport, Inspection
    from ..conversion.flops import MechanismCost
    from ..export import CompressionReport, ExportReport
    from ..inputs.common.base import InputSizes, LengthCost
    from ..inspect import Diagnosis, StockInspection
    from ..mechanisms import MechanismInfo
    from ..training.recipes import Recipe

SHOWN_LENGTHS = (0, 2, 4, 6)
"""Indices of the lengths at which mechanisms are compared in the table; the JSON object has all of them."""
DIAGNOSED_LENGTHS, DIAGNOSED_LAYERS = 5, 16
"""Maximum columns of lengths, and rows of layers, in the table of a diagnosis."""
SIZES = {"image_size": ("pixels", "tokens"), "audio_seconds": ("seconds", "frames"), "context_length": ("steps", "tokens")}
"""Sizes of inputs in a report's plan -> the units of the size and of the tokens."""
STYLES: dict[str, Style] = {"passed": "good", "failed": "bad", "needs training": "warning", "measured": "measured", "skipped": "quiet"}


def print_plan(plan: ConversionPlan, *, as_json: bool) -> None:
    """Print a plan, and what every mechanism costs at several lengths or sizes. Towers have a table each."""
    from ..conversion.flops import matrix_speed

    compared = {name: _compared(part) for name, part in plan.parts.items() if not (plan.generic and name)}
    if as_json:
        values = {name: {**sizes, "mechanisms": [asdict(row) for row in rows]} for name, (rows, sizes, _, _) in compared.items()}
        terminal.print_json({**plan.to_dict(), "comparison": values.get("", values)})
        return
    report = _plan(plan)
    for name, (rows, _, headings, unit) in compared.items():
        report.say(name and f"\ntower {name}", "strong")
        add_comparison(report, rows, headings, matrix_speed(), unit)
    terminal.show(report)


def _plan(plan: ConversionPlan) -> Report:
    """What a conversion would do."""
    report = Report()
    report.facts(
        ("source", f"{plan.source.name}  ({plan.architecture.source_class}, {plan.inputs.old_words})"),
        ("result", f"{plan.architecture.long_class}, {plan.new_input}, {plan.parameters:,} parameters"),
        ("texts", str(plan.short_texts)),
        ("positions", plan.positions + ("" if not plan.position_change else f"  ({plan.position_change}: needs training)")),
        ("tensors", _counts(plan.counts())),
        ("size", f"{decimal(plan.source.total_bytes)} → {decimal(plan.total_bytes)}"),
        ("native twin", "" if plan.native_twin is None else plan.native_twin.describe()),
    )
    for tensor in plan.tensors:
        if tensor.action != "kept":
            shapes = " → ".join(str(list(shape)) for shape in (tensor.old_shape, tensor.new_shape) if shape is not None)
            comes_from = "" if tensor.header is None or tensor.action == "dropped" else tensor.header.name
            name = f"{comes_from} → {tensor.name}" if comes_from not in ("", tensor.name) else tensor.name
            why = f"  ({tensor.reason})" if tensor.reason else ""
            report.say(f"  {tensor.action}  {name}  {shapes}{why}", "quiet")
    _warn(report, [*map(str, plan.warnings)])
    report.gap()
    report.say("" if plan.choice is None else f"{plan.choice['reason']}\n", "strong")
    for name, part in plan.parts.items():
        report.say(name and f"tower {name}: {part.new_input}, {_counts(part.counts())} tensors", "strong")
        report.say(part.attention.table(part.shape.layers))
        if part.decoder is not None:
            report.say(f"\ndecoder, {part.decoder.old} → {part.decoder.new} tokens")
            report.say(part.config.decoder_attention.table(part.config.decoder_layers))
        if part.costs:
            report.gap()
            report.table(_costs(part.costs, part.inputs))
    _add_plain_class(report, plan)
    return report


def _add_plain_class(report: Report, model: ConversionPlan | Inspection) -> None:
    """What is to know of a plain class besides the towers that have mechanisms."""
    for name in model.other_towers:
        report.say(f"tower {name}: the attention of its class", "strong")
    report.say("Tokens of texts are global in the language model; those of images are not." if model.text_global else "")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {action}" for action, count in counts.items() if count)


def _compared(plan: ConversionPlan) -> tuple[Sequence[MechanismCost], dict[str, Any], list[str], str]:
    """The costs of all mechanisms, the sizes at which they are compared, these in words, and what one input is called."""
    from ..conversion.flops import compare_at_sizes

    sizes = plan.inputs.doublings(plan.architecture.source_config)
    rows = compare_at_sizes(plan.attention, plan.shape, sizes, plan.inputs.kind.mechanisms(plan.shape.causal))
    return rows, plan.inputs.compared_values(sizes), [size.heading for size in sizes], _one(plan.inputs)


def _one(inputs: InputSizes) -> str:
    """What one input is called in a table of costs."""
    return inputs.noun if inputs.units else "sequence"


def add_comparison(report: Report, rows: Sequence[MechanismCost], headings: Sequence[str], speed: float, unit: str = "sequence") -> None:
    """Add each mechanism's cost for one ``unit``; then why others have none."""
    shown = [index for index in SHOWN_LENGTHS if index < len(headings)] if len(headings) > len(SHOWN_LENGTHS) else range(len(headings))
    counted = [row for row in rows if not row.refused]
    same = len({row.bytes for row in counted}) == 1  # an encoder has no cache, and its largest activation is not in attention
    title = f"least seconds for one {unit} through the whole model, at this machine's {speed / 1e9:,.0f} GFLOP/s"
    cells = []
    for row in counted:
        cells.append([row.mechanism])
        for index in shown:
            seconds, memory = row.flops[index] / speed, "" if same else f" / {_round(row.bytes[index])}"
            cells[-1].append((f"{seconds:.2g}" if seconds < 100 else f"{seconds:,.0f}") + memory)
    if same:
        cells += [[], ["memory besides the weights", *(_round(counted[0].bytes[index]) for index in shown)]]
    columns = ["mechanism", *(headings[index] for index in shown)]
    report.table(Table(columns, cells, title if same else f"{title} / memory besides the weights", shrinks=True))
    for row in rows:
        report.say(f"{row.mechanism}: {row.refused}" if row.refused else "", "quiet")


def _round(count: int) -> str:
    """A size without decimals, so that four columns and the names fit into 80 characters."""
    number, unit = decimal(count).split()
    return f"{float(number.replace(',', '')):,.0f} {unit}"


def _grown(plan: Mapping[str, Any]) -> str:
    """The longest input of source and result."""
    if "input" in plan:
        return str(plan["input"])
    if "towers" in plan:
        return "; ".join(f"{name} {_grown(tower)}" for name, tower in plan["towers"].items())
    old, new = plan["old_length"], plan["new_length"]
    for name, (unit, token_unit) in SIZES.items():
        if f"new_{name}" in plan:
            values = [plan[f"{which}_{name}"] for which in ("old", "new")]
            before, after = ("×".join(map(str, value)) if isinstance(value, list | tuple) else f"{value:,g}" for value in values)
            return f"{before} → {after} {unit}, {old:,} → {new:,} {token_unit}"
    length = f"{new} tokens" if new else "any number of tokens"
    return f"{old} → {length}" if old else length


def _costs(costs: Sequence[LengthCost], inputs: InputSizes) -> Table:
    """Cost at each length or size of one input."""
    columns = {
        **({inputs.units: [cost.shown_size for cost in costs]} if inputs.units else {}),
        inputs.token_unit: [f"{cost.length:,}" for cost in costs],
        "attention": [flops(cost.attention_flops) for cost in costs],
        "full attention": [flops(cost.full_attention_flops) for cost in costs],
        "ratio": [f"{cost.full_attention_flops / max(1, cost.attention_flops):.1f}×" for cost in costs],
        "whole model": [flops(cost.total_flops) for cost in costs],
        "activations": [decimal(cost.activation_bytes) for cost in costs],
        "decode cache": ["" if cost.cache_bytes is None else decimal(cost.cache_bytes) for cost in costs],
    }
    title = f"operations and memory for one {_one(inputs)}, computed from the model's shape"
    return Table.of_columns(columns, title, align="r")


def show_report(report: ConversionReport) -> None:
    """What was written, and the checks."""
    from ..conversion.report import POSITIONS, READY, WOULD_TELL, verdict_check
    from ..hub import next_step

    plan, shown = report.plan, Report()
    shown.facts(
        ("written", f"{report.destination}  ({decimal(report.bytes_written)} in {report.seconds['convert']:.1f} s)"),
        ("model", f"{plan.get('class', plan['long_class'])}, {_grown(plan)}, positions {plan['positions']}"),
        ("texts", _short_texts(report) if "short_texts" in plan else ""),
        ("tensors", _counts(plan["tensor_counts"])),
    )
    shown.say(f"\n{plan['choice']['reason']}" if "choice" in plan else "", "strong")
    if not any(check.name == POSITIONS for check in report.checks):
        _warn(shown, plan.get("warnings", ()))
    if not report.checks:
        shown.say("\nNot verified (--no-verify).", "warning")
        terminal.show(shown)
        return
    shown.gap()
    shown.facts(*(Fact(check.status, check.name, check.detail, STYLES[check.status]) for check in report.checks))
    shown.gap()
    shown.say(f"Verified in {report.seconds['verify']:.1f} s on {report.text}; details are in {report.files[-2]}.")
    verdict = {} if (check := verdict_check(report.checks)) is None else check.values
    if WOULD_TELL in verdict:
        shown.say(f"Not known whether it is {READY}: {verdict[WOULD_TELL]} would tell.", "warning")
    elif report.verdict == READY:
        shown.say(f"{READY.capitalize()}, as measured on {verdict['tokens']:,} tokens of {report.text}.", "good")
    if report.next_step is not None:
        heading = "Next" if report.needs_training else "To train it"
        shown.say(f"{heading}: {next_step(report.next_step, _as_typed(report.destination))}", typed=True)
    terminal.show(shown)


def _short_texts(report: ConversionReport) -> str:
    """What a conversion says first of short texts: what was planned or, where that was verified, the largest difference."""
    from ..conversion.report import SHORT_TEXTS
    from ..reports import PASSED

    for check in report.checks:
        if check.name == SHORT_TEXTS and check.status == PASSED:
            length, difference = check.values["length"], check.values["relative_difference"]
            return f"of up to {length} tokens: outputs equal the source's (largest difference {difference:.1e})"
    return str(report.plan["short_texts"])


def _as_typed(path: Path) -> str:
    """A path from the working directory, if it is in there, or the whole path."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _warn(report: Report, sentences: Sequence[str]) -> None:
    for sentence in sentences:
        report.say(f"\nWarning: {sentence}", "warning")


def show_compression(compression: CompressionReport) -> None:
    """What a compression costs and saves."""
    report = Report()
    accuracy = "; ".join(
        f"{name}: " + ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in values.items())
        for name, values in compression.outputs.items()
    )
    report.facts(
        ("written", str(compression.destination)), ("method", compression.config["method"]), ("changed", compression.changed_in_words()),
        ("outputs", accuracy), ("measured on", compression.text),
    )  # fmt: skip
    report.table(Table(("", "before", "after"), compression.rows()))
    terminal.show(report)


def show_export(export: ExportReport) -> None:
    """What was written, its inputs and outputs, and the comparison with the model."""
    form = export.format if export.opset is None else f"{export.format}, opset {export.opset}"
    inputs = f"{export.min_length:,} to {export.max_length:,} tokens"
    report = Report()
    report.facts(
        ("written", f"{export.destination}  ({decimal(export.bytes_written)})"),
        ("graph", f"{export.class_name}, {form}, any batch size, {inputs}"),
        ("inputs", ", ".join(export.inputs)),
        ("outputs", ", ".join(export.outputs)),
        *((check.status, f"{check.name}: {check.detail}") for check in export.checks),
    )
    terminal.show(report)


def show_inspection(model: Inspection) -> None:
    """A checkpoint: its model, mechanisms, state and cost."""
    report = Report()
    _add_inspection(report, model)
    terminal.show(report)


def _add_inspection(report: Report, model: Inspection) -> None:
    from ..inspect.paths import COLUMNS, planned_length, planned_paths

    of_transformers = " of transformers, with mechanisms" if model.generic else ""
    pruned = ", ".join(f"{heads} in layer {layer}" for layer, heads in model.kept_heads.items())
    reads = "" if model.apart else f"{model.longest_input}, {'causal' if model.causal else 'bidirectional'}"
    report.facts(
        ("model", f"{model.source.name}  ({model.class_name}{of_transformers}, model type {model.model_type})"),
        ("input", reads),
        ("parameters", f"{model.parameters:,}  ({decimal(model.nbytes)} in {model.tensors} tensors)"),
        ("pruned heads", f"{pruned} kept" if pruned else ""),
    )
    if model.apart:
        for name, tower in model.towers.items():
            report.say(f"\ntower {name}", "strong")
            _add_inspection(report, tower)
        _add_plain_class(report, model)
        return
    report.gap()
    report.say(model.attention.table(len(model.mechanisms)))
    report.gap()
    runs = planned_paths(model)
    title = (
        f"what runs on this machine for {planned_length(model):,} tokens in fp32, and why; of a model and its inputs: hf_longattn.explain"
    )
    report.table(Table(COLUMNS, runs.rows(), title, align="l"))
    report.table(_states(model))
    if model.costs:
        report.table(_costs(model.costs, model.inputs))


def show_stock(name: str, model: StockInspection, lengths: Sequence[int]) -> None:
    """What the layers of a stock model and of its towers declare, what runs for them, and the memory that it needs."""
    from ..mechanisms.common.choice_text import write_numbers

    report = Report()
    parts = [(name, model), *((f"tower {tower}", part) for tower, part in model.towers.items())]
    for shown, part in parts:
        composed = part is model and len(parts) > 1
        runs = "sdpa" if part.implementation == "sdpa" else f"eager, since {part.class_name} does not support SDPA"
        report.facts(
            ("model", f"{shown}  ({part.class_name}, model type {part.model_type})"),
            ("parameters", f"{part.parameters:,}"),
            ("transformers", "" if composed else runs + ("; flash attention on GPUs" if part.flash else "")),
            ("longattn", "" if composed else part.verdict()),
        )
        report.gap()
        layers = [(write_numbers(of), module, f"{layer.heads}", str(layer)) for (module, layer), of in part.groups().items()]
        report.table(Table(("layers", "module", "heads", "a query sees"), layers, align="l"))
        memory = [(f"{length:,}", decimal(stock), decimal(ours)) for length, stock, ours in part.memory(lengths) if stock or ours]
        report.say("Estimated memory of mask and scores in one layer, the largest, for one text in fp32:" if memory else "")
        report.table(Table(("tokens", "transformers", "longattn"), memory, align="r"))
    terminal.show(report)


def _states(model: Inspection) -> Table:
    """The decode state of each run of equal layers."""
    rows, first = [], 0
    for (name, state), run in groupby(zip((mechanism.name for mechanism in model.mechanisms), model.states, strict=False)):
        last = first + len(list(run)) - 1
        layers = f"{first}-{last}" if last > first else str(first)
        rows.append((layers, name, decimal(state.bytes), decimal(state.per_token) if state.per_token else "nothing"))
        first = last + 1
    title = f"state of each layer while decoding a sequence of {model.max_length:,} tokens"
    return Table(("layers", "mechanism", "state", "added by each further token"), rows, title, align="l")


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """How attention spreads as an input grows, and what mechanisms would keep of it."""
    from ..inspect.diagnosis import in_seconds, percent

    report, chosen, image = Report(width=80), diagnosis.chosen(), diagnosis.image
    report.say(diagnosis.conclusion(), "strong")
    size = "" if image is None else f"Image of {image.size}, {image.grid}."
    for sentence in (size, diagnosis.dilution(), diagnosis.reach(), *diagnosis.notes):
        report.say(sentence)
    report.gap()
    report.table(_layers(diagnosis))
    title = f"kept of the attention at {diagnosis.in_words(diagnosis.last.length)}; cost as a share of full attention's"
    if diagnosis.frame_seconds is not None:
        title += f"; options count frames of {in_seconds(diagnosis.frame_seconds)}"
    cells, styles = [], list[Style]()
    for row in diagnosis.candidate_rows():
        least = f"{percent(row.least)} ({row.least_layer})"
        cells.append((str(row.place), str(row.candidate), percent(row.mass), least, percent(row.cost)))
        styles.append("good" if row.chosen else "" if row.on_front else "quiet")
    report.table(Table(("#", "mechanism", "kept", "least (layer)", "cost"), cells, title, "rlr", styles))
    for why, names in (("not measured for", diagnosis.reasons), ("not chosen, since positions need training", diagnosis.untrained)):
        report.say(f"{why}: {', '.join(sorted(names))} (--json says why)\n" if names else "", "quiet")
    if chosen is not None:
        model = "the checkpoint that this model was made from" if diagnosis.is_long else "the model"
        report.say(f"To convert {model} so, add to longattn convert:\n  {shlex.join(diagnosis.flags(chosen))}", typed=True)
    terminal.show(report)


def _layers(diagnosis: Diagnosis) -> Table:
    """Mean numbers of the layers: the longest lengths, and of deep models the layers at equal distances."""
    from ..inspect.diagnosis import percent

    lengths = diagnosis.lengths[-DIAGNOSED_LENGTHS:]
    columns = ["layer", *(f"eff. {diagnosis.unit}\nof {row.length:,}" for row in lengths), "largest\nweight", f"first\n{diagnosis.unit}"]
    count = len(diagnosis.last.layers)
    step, rows = -(-count // DIAGNOSED_LAYERS), []
    for layer in [number for number in range(count) if number % step == 0 or number == count - 1]:
        last = diagnosis.last.layers[layer]
        effective = [f"{float(row.layers[layer].numbers['effective_tokens'].mean()):,.1f}" for row in lengths]
        shares = [last.numbers["largest_weight"], last.numbers["first_tokens"]]
        rows.append([str(layer), *effective, *(percent(float(share.mean())) for share in shares)])
    return Table(columns, rows, "mean over the heads of a layer", align="r")


def show_mechanisms(infos: Sequence[MechanismInfo]) -> None:
    """One line per mechanism."""
    report, causal = Report(), {"both": "both", True: "only", False: "no"}
    rows = [(info.name, info.summary, info.cost, causal[info.causal]) for info in infos]
    report.table(Table(("name", "what it does", "cost", "causal"), rows, align="l"))
    report.say("Options of each: longattn mechanisms NAME")
    terminal.show(report)


def show_recipes(recipes: Sequence[Recipe]) -> None:
    """The recipes of each command: name and title, with the published score below."""
    report, width = Report(), max(len(recipe.name) for recipe in recipes)
    for command, group in groupby(sorted(recipes, key=lambda recipe: recipe.command), key=lambda recipe: recipe.command):
        report.say(command, "strong")
        scored = [(recipe, recipe.entries.get("score")) for recipe in group]
        rows = [Fact(one.name.ljust(width), one.entries["title"], f"Published: {score}" if score else "", "") for one, score in scored]
        report.facts(*rows, indent=2)
        report.gap()
    report.say("The commands of each, its values and their source: longattn recipes NAME")
    terminal.show(report)


def show_mechanism(info: MechanismInfo) -> None:
    """One mechanism in full."""
    from ..mechanisms.common.registry import input_in_words

    report = Report()
    report.facts(
        ("name", info.name),
        ("summary", info.summary),
        ("when", info.when),
        ("paper", info.paper),
        ("cost", info.cost),
        ("causal", {"both": "causal and bidirectional", True: "causal only", False: "bidirectional only"}[info.causal]),
        ("equals full attention", info.exact_when),
        ("adds parameters", "yes: needs training" if info.trains else "no"),
        ("global tokens", "taken (global_attention_mask)" if info.takes_globals else "not taken"),
        ("input", input_in_words(info.name)),
        ("engine", info.engine),
    )
    report.say("" if info.options else "\nno options")
    for option in info.options:
        unit = f", in {option.unit}" if option.unit else ""
        report.say(f"\n{option.name}  {option.type_in_words}{unit}, default {option.readable(option.default)}", "strong")
        report.say(option.help, indent=4)
    terminal.show(report)


def flops(count: int) -> str:
    """Floating-point operations in readable units."""
    unit, name = pick_unit_and_suffix(count, ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"], 1000)
    return f"{count / unit:.1f} {name}"


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
