"""The report of an audit: reach against the config, and how attention spreads over an input. For terminal and page."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ..reports import Drawing, Report, Style, Table
from . import charts
from .diagnosis import ENOUGH, CandidateRow, Diagnosis, Image, in_seconds, percent, thousands
from .layer_attention import SINK
from .verdict import ReachAudit, TowersAudit

WIDTH = 80
"""Columns of a report on a terminal."""
SHOWN_LENGTHS = 5
"""Columns of lengths on a terminal, the longest ones."""
SHOWN_LAYERS = 16
"""Rows of layers on a terminal; of deeper models, as many at equal distances."""


def audit_report(reach: ReachAudit | TowersAudit | None = None, diagnosis: Diagnosis | None = None) -> Report:
    """The report of an audit of reach, of a diagnosis, or of both."""
    if diagnosis is None:
        model = next(iter(reach.parts.values())).model if reach is not None else ""
        report = Report(f"What reaches what in {model}", "longattn audit")
    else:
        about = ("longattn audit", f"{diagnosis.model} ({diagnosis.model_class})", diagnosis.text, f"{diagnosis.last.queries:,} queries",
                 "softmax over all keys that the base's attention sees", diagnosis.device)  # fmt: skip
        report = Report(diagnosis.conclusion(), " · ".join(about), WIDTH)
    if reach is not None:
        for name, audit in reach.parts.items():
            report.section(f"What reaches what{f', tower {name}' if name else ''}")
            _add_reach(report, audit)
        for note in reach.notes:
            report.say(note)
        report.gap()
    if diagnosis is not None:
        _add_diagnosis(report, diagnosis)
    return report


def _add_reach(report: Report, audit: ReachAudit) -> None:
    """Add what a config says of its tokens' reach, and what was measured."""
    pooled = bool(audit.probes)
    replaced = f"; replaced, one at a time: {', '.join(f'{position:,}' for position in audit.probes)}" if pooled else ""
    report.facts(
        ("config", audit.model), ("audited", audit.subject), (audit.unit, f"{audit.length:,}{replaced}"),
        ("cost", f"{audit.runs:,} runs in {audit.seconds:,.0f} s"),
    )  # fmt: skip
    rows = []
    for stage in audit.stages:
        reach = () if pooled else tuple(f"{back:,}, {ahead:,}" for back, ahead in (stage.declared, stage.measured))
        rows.append((stage.stage, stage.mechanism, *reach, stage.problem or "agrees"))
    columns = ("", "mechanism", *(() if pooled else ("config: back, ahead", "measured")), "verdict")
    report.table(Table(columns, rows, align="l", styles=["bad" if stage.problem else "" for stage in audit.stages]))
    report.add(Drawing(partial(charts.reach_drawing, audit), "what changed when tokens were replaced"), "page")
    report.say(audit.note)
    if not audit.exhaustive and audit.tested < 1:
        seconds = audit.seconds / audit.runs * audit.exhaustive_runs
        report.say(
            f"Tested: {int(1000 * audit.tested) / 10} % of the outputs and tokens that the config keeps apart; --exhaustive tests all "
            f"of them, in {audit.exhaustive_runs:,} runs, some {_duration(seconds)}."
        )
    if audit.agrees:
        report.say("The outputs that changed are those that the config lets these tokens reach.", "good")
    else:
        report.say("What runs is not what the config says.", "bad")


def _duration(seconds: float) -> str:
    """ "12 s", "3 minutes" or "2.5 hours"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def _add_diagnosis(report: Report, diagnosis: Diagnosis) -> None:
    """Add how attention spreads as the input grows, and what mechanisms would keep of it."""
    unit, chosen, image = diagnosis.unit, diagnosis.chosen(), diagnosis.image
    report.section("How attention spreads")
    report.say(diagnosis.conclusion(), "strong", only="terminal")
    size = "" if image is None else f"Image of {image.size}, {image.grid}."
    for sentence in (size, diagnosis.dilution(), diagnosis.reach(), *diagnosis.notes):
        report.say(sentence)
    report.gap()
    report.table(_layers(diagnosis), only="terminal")
    if len(diagnosis.lengths) > 1:
        report.add(Drawing(partial(charts.spread_chart, diagnosis), f"effective {unit} by layer; dashed: all {unit} equally"), "page")
    if image is not None:
        _add_maps(report, diagnosis, image)
    report.section("Every head", f"The darker, the more. Heads differ: some look at a few {unit} at any length, others at everything.")
    report.table(_heads(diagnosis), only="page")
    report.section(
        "How far it looks",
        f"Percent of each layer's attention by the distance between query and key, each column up to the next; 0 is the {unit[:-1]} "
        "itself. A window keeps what lies left of half its width (of all of it in a decoder).",
    )
    report.table(_distances(diagnosis), only="page")
    _add_mechanisms(report, diagnosis)
    if chosen is not None:
        typed = shlex.join(diagnosis.flags(chosen))
        model = "the checkpoint that this model was made from" if diagnosis.is_long else "the model"
        report.say(f"To convert {model} so, add to longattn convert:\n  {typed}", typed=True)
    report.section("What the numbers mean")
    report.facts(
        (f"effective {unit}", f"exp of the entropy of a query's weights: attention to n {unit} with equal weights has n effective {unit}."),
        ("dilution", f"As the {diagnosis.input_noun} grows, the same weights spread over more {unit}: each counts for less."),
        (f"first {unit}", f"Mass on the first {SINK} {unit}. Heads that have nothing to look for put it there."),
        ("kept", "Mass of the full softmax on the keys that a mechanism lets a query see. It says what is lost before any training."),
        ("cost", "Query–key products of attention alone, as a share of full attention's. longattn plan gives seconds for a whole model."),
        only="page",
    )


def _layers(diagnosis: Diagnosis) -> Table:
    """Mean numbers of the layers, within the columns of a terminal."""
    lengths = diagnosis.lengths[-SHOWN_LENGTHS:]
    columns = ["layer", *(f"eff. {diagnosis.unit}\nof {row.length:,}" for row in lengths), "largest\nweight", f"first\n{diagnosis.unit}"]
    count = len(diagnosis.last.layers)
    step, rows = -(-count // SHOWN_LAYERS), []
    for layer in [number for number in range(count) if number % step == 0 or number == count - 1]:
        last = diagnosis.last.layers[layer]
        effective = [f"{float(row.layers[layer].numbers['effective_tokens'].mean()):,.1f}" for row in lengths]
        shares = [last.numbers["largest_weight"], last.numbers["first_tokens"]]
        rows.append([str(layer), *effective, *(percent(float(share.mean())) for share in shares)])
    return Table(columns, rows, "mean over the heads of a layer", align="r")


def _add_maps(report: Report, diagnosis: Diagnosis, image: Image) -> None:
    """Add the attention of every layer over an image."""
    report.section(f"Where {image.reader} looks")
    for number, layer in enumerate(diagnosis.last.layers):
        if layer.attention is not None:
            report.add(Drawing(partial(charts.attention_on_image, image, layer.attention), f"attention of layer {number}"), "page")
    report.say("--html FILE draws the attention of every layer over the image.", "quiet", only="terminal")


def _add_mechanisms(report: Report, diagnosis: Diagnosis) -> None:
    """Add how much attention each mechanism keeps, and its cost."""
    rows = diagnosis.candidate_rows()
    report.section(
        "What each mechanism would keep",
        "The share of full attention's mass on the keys that a mechanism keeps, mean over layers and heads, against its query–key "
        f"products. Bold is the cheapest that keeps {percent(ENOUGH)}; where a line is grey, another one keeps more for the same cost.",
    )
    report.table(_kept_by_layer(diagnosis, rows), only="page")
    title = f"kept of the attention at {diagnosis.in_words(diagnosis.last.length)}; cost as a share of full attention's"
    if diagnosis.frame_seconds is not None:
        title += f"; options count frames of {in_seconds(diagnosis.frame_seconds)}"
    columns = ("#", "mechanism", "kept", "least (layer)", "cost")
    cells, styles = [], list[Style]()
    for row in rows.values():
        least = f"{percent(row.least)} ({row.least_layer})"
        cells.append((str(row.place), str(row.candidate), percent(row.mass), least, percent(row.cost)))
        styles.append("good" if row.chosen else "" if row.on_front else "quiet")
    report.table(Table(columns, cells, title, "rlr", styles))
    for names, title, why in (
        (diagnosis.reasons, "Mechanisms without this number, and why", "not measured for"),
        (
            diagnosis.untrained,
            "Mechanisms whose positions need training in longer texts, and why",
            "not chosen, since positions need training",
        ),
    ):
        report.facts(*sorted(names.items()), summary=title, only="page")
        report.say(f"{why}: {', '.join(sorted(names))} (--html says why)\n" if names else "", "quiet", only="terminal")


def _heads(diagnosis: Diagnosis) -> Table:
    """Effective tokens by layer and head at the longest length."""
    values = diagnosis.last.number("effective_tokens")
    known = values.nan_to_num(0.0)
    texts = [["–" if math.isnan(one) else thousands(one) if one >= 9.95 else f"{one:.1f}" for one in layer] for layer in values.tolist()]
    title = f"effective {diagnosis.unit} of every head at {diagnosis.in_words(diagnosis.last.length)}"
    heads = [str(head) for head in range(values.shape[1])]
    shares = (known / known.max().clamp(min=1e-9)).clamp(min=0).sqrt().tolist()
    return _heat(title, "head", heads, shares, texts, lambda layer, head: f"layer {layer}, head {head}: {texts[layer][head]}")


def _distances(diagnosis: Diagnosis) -> Table:
    """The attention by layer and distance at the longest length."""
    row = diagnosis.last
    masses = row.by_distance().tolist()
    ranges = [f"distance {low:,}" if low == high else f"distances {low:,} to {high:,}" for low, high in row.bins]
    title = f"Mass by distance at {diagnosis.in_words(row.length)}"
    if diagnosis.frame_seconds is not None:
        starts = [(low, in_seconds(low * diagnosis.frame_seconds)) for low, _ in row.bins[1:]]
        title += f". In time: {', '.join(f'{thousands(low)} = {seconds}' for low, seconds in starts)}"
    shares = [[math.sqrt(min(1.0, 2 * share)) for share in shares] for shares in masses]
    return _heat(
        title, "from", [thousands(low) for low, _ in row.bins], shares, _percents(masses),
        lambda layer, place: f"layer {layer}: {percent(masses[layer][place])} of the attention at {ranges[place]}",
    )  # fmt: skip


def _kept_by_layer(diagnosis: Diagnosis, rows: Mapping[int, CandidateRow]) -> Table:
    """The mass kept by layer, for the candidates of the front. Columns are named by number in the table of all candidates."""
    front = diagnosis.front()
    kept = diagnosis.last.captured().nanmean(1)[:, front].tolist()
    places = [str(rows[number].place) for number in front]
    return _heat(
        "Percent kept in each layer, by number", "number", places, kept, _percents(kept),
        lambda layer, place: f"layer {layer}: {diagnosis.candidates[front[place]]} keeps {percent(kept[layer][place])}",
    )  # fmt: skip


def _percents(rows: Sequence[Sequence[float]]) -> list[list[str]]:
    return [[f"{100 * share:.0f}" for share in row] for row in rows]


def _heat(
    title: str, noun: str, columns: Sequence[str], shares: Sequence[Sequence[float]], texts: Sequence[Sequence[str]],
    tooltip: Callable[[int, int], str],
) -> Table:  # fmt: skip
    """A heat map with a row for each layer. noun: for a column. tooltip: ``(layer, column) ->`` what a cell says."""
    rows = [[str(layer), *cells] for layer, cells in enumerate(texts)]
    tooltips = [[tooltip(layer, place) for place in range(len(cells))] for layer, cells in enumerate(texts)]
    return Table([f"layer, {noun}", *columns], rows, title, shares=shares, tooltips=tooltips)
