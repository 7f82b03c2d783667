"""The report of a diagnosis: conclusion, notes, what to do, tables and drawings. The terminal shows the sentences and two tables."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence

from ..errors import sentence_case
from ..reports import Drawing, Report, Style, Table, Views
from . import charts
from .diagnosis import ENOUGH, NOTHING_FITS, WIDTH, CandidateRow, Diagnosis, in_seconds, percent, thousands
from .layer_attention import SINK

SHOWN_LENGTHS = 5
"""Columns of lengths on a terminal, the longest ones."""
SHOWN_LAYERS = 16
"""Rows of layers on a terminal; of deeper models, as many at equal distances."""
NEEDLE_HEADS = 4
"""Number of heads with a line in the needle chart."""
VIEWS = {
    "effective_tokens": ("effective {unit}", "As many {unit} with equal weights have the same entropy."),
    "attended_share": ("share of the {text} attended to", "Effective {unit} as a share of the {unit} that a query sees."),
    "largest_weight": ("largest weight", "The largest attention weight of a query."),
    "first_tokens": ("mass on the first {unit}", f"The share of the attention on the first {SINK} {{unit}}, a sink."),
    "needle": ("mass on the needle", "The share of the question's attention on the planted sentence."),
}
"""Numbers that the heat table of all heads can show: name -> title and explanation, with placeholders ``{unit}`` and ``{text}``."""
SCALED = ("effective_tokens", "needle")
"""Numbers for which the darkest colour stands for the table's maximum. For all other numbers it stands for 1."""


def diagnosis_report(diagnosis: Diagnosis, text: str = "TEXT") -> Report:
    """The report of a text or sound model; ``text`` is the file or folder that was read, as in a command."""
    last, unit, best = diagnosis.last, diagnosis.unit, diagnosis.recommend()
    keys = "the keys that each layer's mechanism keeps" if diagnosis.within_mechanism else "all keys that the base's attention sees"
    model = f"{diagnosis.model} ({diagnosis.model_class})"
    about = ("longattn diagnose", model, diagnosis.text, f"{last.queries:,} queries", f"softmax over {keys}", diagnosis.device)
    report = Report(diagnosis.conclusion(), " · ".join(about), WIDTH)
    report.say(diagnosis.conclusion(), "strong", only="terminal")
    for sentence in (diagnosis.dilution(), "" if diagnosis.frame_seconds is None else diagnosis.reach(), *diagnosis.notes):
        report.say(sentence)
    report.section("What to do", _advice(diagnosis))
    report.say("" if best is None else best.command, typed=True, only="page")
    report.facts(*diagnosis.untrained.items(), summary="Mechanisms whose positions need training, and why", only="page")
    report.gap()
    report.table(_layers(diagnosis), only="terminal")
    _add_drawings(report, diagnosis)
    _add_mechanisms(report, diagnosis)
    if best is not None:
        report.say(f"No loss was measured: {diagnosis.no_loss}" if best.loss is None and diagnosis.no_loss else "", only="terminal")
        words = "so, type" if best.command else "the checkpoint that this model was made from so, add to longattn convert"
        report.say(f"To convert {words}:\n  {best.command or shlex.join(best.flags)}", typed=True, only="terminal")
    elif diagnosis.untrained:
        report.say(f"Nothing is recommended: {NOTHING_FITS}", only="terminal")
    if search := diagnosis.search_command(text):
        report.say(f"For a mechanism in every layer under a budget of measured time, type:\n  {search}", typed=True, only="terminal")
    report.section("What the numbers mean")
    report.facts(
        (f"effective {unit}", f"exp of the entropy of a query's weights: attention to n {unit} with equal weights has n effective {unit}."),
        ("dilution", f"As the {diagnosis.input_noun} grows, the same weights spread over more {unit}: each counts for less."),
        (f"first {unit}", f"Mass on the first {SINK} {unit}. Heads that have nothing to look for put it there."),
        ("kept", "Mass of the full softmax on the keys that a mechanism lets a query see. It says what is lost before any training."),
        ("cost", "Query–key products of attention alone, as a share of full attention's. longattn plan gives seconds for a whole model."),
        only="page",
    )
    return report


def _advice(diagnosis: Diagnosis) -> str:
    """What a page recommends, in a few sentences."""
    best, option = diagnosis.recommend(), "--lengths" if diagnosis.frame_seconds is None else "--audio-seconds"
    if best is None and diagnosis.untrained:
        return sentence_case(NOTHING_FITS)
    if best is None:
        return (
            "No mechanism that was compared is cheaper than full attention at this length: keep it, or diagnose longer "
            f"{diagnosis.input_noun}s with {option}."
        )
    enough = percent(ENOUGH)
    said = f"{best.candidate} keeps {percent(best.mass)} of the attention at {diagnosis.in_words(best.judged_at)}, in layer "
    said += (
        f"{best.lowest[1]} {percent(best.lowest[0])}, for {percent(best.cost)} of the cost at {diagnosis.in_words(diagnosis.last.length)}. "
    )
    if best.enough:
        said += f"It is the cheapest mechanism compared that keeps {enough}."
    else:
        said += (
            f"No mechanism compared keeps {enough} for less than the cost of full attention; this one keeps most for at most half of that "
            "cost. What is not kept is lost, so train the model after the conversion, or keep some layers full with --layers."
        )
    if diagnosis.untrained:
        said += " Only mechanisms were considered whose keys lie at distances that positions were trained for."
    if best.loss is not None:
        said += f" {sentence_case(diagnosis.loss_sentence(best.loss))}."
    elif diagnosis.no_loss:
        said += f" No loss was measured: {diagnosis.no_loss}"
    return said if best.command else f"{said} Convert the checkpoint that this model was made from with {shlex.join(best.flags)}."


def _layers(diagnosis: Diagnosis) -> Table:
    """Mean numbers of the layers, within the columns of a terminal."""
    lengths, needle = diagnosis.lengths[-SHOWN_LENGTHS:], diagnosis.needle is not None
    spread = [f"eff. {diagnosis.unit}\nof {row.length:,}" for row in lengths]
    columns = ["layer", *spread, "largest\nweight", f"first\n{diagnosis.unit}", *["needle"] * needle]
    count = len(diagnosis.last.layers)
    step, rows = -(-count // SHOWN_LAYERS), []
    for layer in [number for number in range(count) if number % step == 0 or number == count - 1]:
        last = diagnosis.last.layers[layer]
        effective = [f"{float(row.layers[layer].numbers['effective_tokens'].mean()):,.1f}" for row in lengths]
        shares = [last.numbers["largest_weight"], last.numbers["first_tokens"], *[last.needle] * needle]
        rows.append([str(layer), *effective, *(percent(float(share.mean())) for share in shares)])
    return Table(columns, rows, "mean over the heads of a layer", align="r")


def _add_drawings(report: Report, diagnosis: Diagnosis) -> None:
    """Add how attention spreads, to which distances, and how much falls on the needle."""
    last, unit, text, needle = diagnosis.last, diagnosis.unit, diagnosis.input_noun, diagnosis.needle
    lengths = {str(row.length): diagnosis.in_words(row.length) for row in reversed(diagnosis.lengths)}
    if len(lengths) > 1:
        about = f"Effective {unit} of the average head, a line for each layer; dashed: attention to all {unit} equally."
        report.section(f"How attention dilutes as the {text} grows", about)
        report.add(Drawing(lambda: charts.spread_chart(diagnosis)), "page")
    names = [name for name in VIEWS if name != "needle" or needle is not None]
    words = {name: [part.format(unit=unit, text=text) for part in VIEWS[name]] for name in names}
    report.section("Every head", f"The darker, the more. Heads differ: some look at a few {unit} at any length, others at everything.")
    choices = {"Show": {name: title for name, (title, _) in words.items()}, "at": lengths}
    tables = {f"{name} {row.length}": _head_table(diagnosis, row.length, name, *words[name]) for name in words for row in diagnosis.lengths}
    report.add(Views(choices, tables), "page")
    report.section(
        "How far it looks",
        f"Percent of each layer's attention by the distance between query and key, each column up to the next; 0 is the {unit[:-1]} "
        "itself. A window keeps what lies left of half its width (of all of it in a decoder).",
    )
    report.add(Views({"at": lengths}, {str(row.length): _distance_table(diagnosis, row.length) for row in diagnosis.lengths}), "page")
    if needle is None:
        return
    report.section(
        "Can it find a needle?",
        f"“{needle.text.strip()}” is planted at {', '.join(map(percent, needle.depths))} of the text, and “{needle.question.strip()}” is "
        "its end. The lines are the share of the question's attention on the planted sentence: in the heads with the most (layer.head), in "
        "the mean of all heads, and with equal weights (dashed).",
    )
    report.add(Drawing(lambda: charts.needle_chart(diagnosis, NEEDLE_HEADS)), "page")
    heads = diagnosis.needle_heads(NEEDLE_HEADS)
    listed = ", ".join(f"head {head} of layer {layer} ({percent(share)})" for layer, head, share in heads[:3])
    uniform = percent(last.needle_uniform)
    report.say(f"Most on the needle at {last.length:,} tokens: {listed}; equal weights: {uniform}.\n" if heads else "", only="terminal")
    by_depth = [
        [f"layer {layer}, head {head}", *map(percent, last.layers[layer].needle[head].tolist())] for layer, head, _ in heads
    ]  # fmt: skip
    columns = ["head", *(f"at {percent(depth)}" for depth in needle.depths)]
    report.table(Table(columns, by_depth, f"On the needle at {last.length:,} tokens, by its depth in the text"), only="page")


def _add_mechanisms(report: Report, diagnosis: Diagnosis) -> None:
    """Add how much attention each mechanism keeps, and its cost."""
    rows = diagnosis.candidate_rows()
    report.section(
        "What each mechanism would keep",
        "The share of full attention's mass on the keys that a mechanism keeps, mean over layers and heads, against its query–key "
        "products. No other mechanism keeps more than a filled mark for the same cost; the ringed one is recommended.",
    )
    if rows:
        report.add(Drawing(lambda: charts.cost_chart(diagnosis, rows)), "page")
        report.table(_layer_table(diagnosis, rows), only="page")
    judged, last = (diagnosis.in_words(row.length) for row in (diagnosis.judged, diagnosis.last))
    title = f"kept of the attention at {judged}; cost at {last} as a share of full attention's"
    if diagnosis.frame_seconds is not None:
        title += f"; options count frames of {in_seconds(diagnosis.frame_seconds)}"
    cells = {
        number: (str(row.candidate), percent(row.mass), f"{percent(row.least)} ({row.least_layer})", percent(row.cost))
        for number, row in rows.items()
    }
    styles: dict[int, Style] = {number: "good" if row.recommended else "" if row.on_front else "quiet" for number, row in rows.items()}
    columns, by_cost = ("mechanism", "kept", "least (layer)", "cost"), diagnosis.applicable()
    report.table(
        Table(columns, [cells[number] for number in by_cost], title, styles=[styles[number] for number in by_cost]), only="terminal"
    )
    ranked = [(str(row.place), *cells[number]) for number, row in rows.items()]
    report.table(Table(("#", *columns), ranked, title, "rlr", [*styles.values()]), only="page")
    report.facts(*sorted(diagnosis.reasons.items()), summary="Mechanisms without this number, and why", only="page")
    for names, why in (
        (diagnosis.reasons, "not measured for"),
        (diagnosis.untrained, "not recommended, since their positions need training"),
    ):
        report.say(f"{why}: {', '.join(sorted(names))} (--html says why)\n" if names else "", "quiet", only="terminal")


def _head_table(diagnosis: Diagnosis, length: int, name: str, title: str, meaning: str) -> Table:
    """One number of :data:`VIEWS` by layer and head at one length."""
    row = diagnosis.at(length)
    values = row.needle() if name == "needle" else row.number(name)
    known = values.nan_to_num(0.0)
    shares = (known / known.max().clamp(min=1e-9)).clamp(min=0).sqrt() if name in SCALED else known
    texts = [[_cell(value, name) for value in layer] for layer in values.tolist()]
    tooltips = [[f"layer {layer}, head {head}: {text}" for head, text in enumerate(cells)] for layer, cells in enumerate(texts)]
    heads = [str(head) for head in range(values.shape[1])]
    return _heat(f"{title} of every head at {diagnosis.in_words(length)}. {meaning}", "head", heads, shares.tolist(), texts, tooltips)


def _distance_table(diagnosis: Diagnosis, length: int) -> Table:
    """The attention by layer and distance at one length."""
    row = diagnosis.at(length)
    masses = [layer.distance.mean(0).tolist() for layer in row.layers]
    ranges = [f"distance {low:,}" if low == high else f"distances {low:,} to {high:,}" for low, high in row.bins]
    title = f"Mass by distance at {diagnosis.in_words(length)}"
    if diagnosis.frame_seconds is not None:
        seconds = [[in_seconds(end * diagnosis.frame_seconds) for end in ends] for ends in row.bins]
        ranges = [f"{said} ({first} to {end})" for said, (first, end) in zip(ranges, seconds, strict=True)]
        starts = zip(row.bins[1:], seconds[1:], strict=True)
        title += f". In time: {', '.join(f'{thousands(low)} = {first}' for (low, _), (first, _) in starts)}"
    tooltips = [
        [f"layer {layer}: {percent(share)} of the attention at {where}" for share, where in zip(shares, ranges, strict=True)]
        for layer, shares in enumerate(masses)
    ]
    shares = [[math.sqrt(min(1.0, 2 * share)) for share in shares] for shares in masses]
    return _heat(title, "from", [thousands(low) for low, _ in row.bins], shares, _percents(masses), tooltips)


def _layer_table(diagnosis: Diagnosis, rows: Mapping[int, CandidateRow]) -> Table:
    """The mass kept by layer, for the candidates of the front. Columns are named by rank in the table of all candidates."""
    front = diagnosis.front()
    kept = diagnosis.judged.captured().nanmean(1)[:, front].tolist()
    tooltips = [
        [f"layer {layer}: {diagnosis.candidates[number]} keeps {percent(share)}" for number, share in zip(front, shares, strict=True)]
        for layer, shares in enumerate(kept)
    ]
    places = [str(rows[number].place) for number in front]
    return _heat("Percent kept in each layer, by number", "number", places, kept, _percents(kept), tooltips)


def _percents(rows: Sequence[Sequence[float]]) -> list[list[str]]:
    return [[f"{100 * share:.0f}" for share in row] for row in rows]


def _heat(
    title: str, noun: str, columns: Sequence[str], shares: Sequence[Sequence[float]], texts: Sequence[Sequence[str]],
    tooltips: Sequence[Sequence[str]],
) -> Table:  # fmt: skip
    """A heat map with a row for each layer. noun: for a column."""
    rows = [[str(layer), *cells] for layer, cells in enumerate(texts)]
    return Table([f"layer, {noun}", *columns], rows, title, shares=shares, tooltips=tooltips)


def _cell(value: float, name: str) -> str:
    if math.isnan(value):
        return "–"
    if name == "effective_tokens":
        return thousands(value) if value >= 9.95 else f"{value:.1f}"
    return percent(value).replace(" %", "%")
