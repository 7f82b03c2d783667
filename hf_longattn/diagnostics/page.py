"""A diagnosis as one HTML page that opens offline: conclusion, what to do, pictures, tables, and what the numbers mean."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from torch import Tensor

from .diagnosis import ENOUGH, NOTHING_FITS, Diagnosis, LengthDiagnosis, percent
from .layer_attention import SINK
from .svg import Axis, Line, Mark, chart, colour_of, grid

TEMPLATE = Path(__file__).with_name("page.html")
VIEWS = (
    ("effective_tokens", "effective tokens", "As many tokens with equal weights have the same entropy."),
    ("attended_share", "share of the text attended to", "Effective tokens as a share of the tokens that a query sees."),
    ("largest_weight", "largest weight", "The largest attention weight of a query."),
    ("first_tokens", "mass on the first tokens", f"The share of the attention on the first {SINK} tokens, a sink."),
    ("needle", "mass on the needle", "The share of the question's attention on the planted sentence."),
)
"""What the picture of all heads can show: number, name, meaning."""
SCALED = ("effective_tokens", "needle")
"""Of these, the darkest cell is the largest number of the picture; of the others, 1."""
BEST = 4
"""Heads with a line in the picture of the needle."""


def html_page(diagnosis: Diagnosis) -> str:
    """The page; it needs no other file, and no network."""
    leads = [f'<p class="lead">{escape(diagnosis.dilution())}</p>'] if diagnosis.dilution() else []
    leads += [f'<p class="note">{escape(note)}</p>' for note in diagnosis.notes]
    sections = [
        _advice(diagnosis),
        _pair(_spread(diagnosis) if len(diagnosis.lengths) > 1 else "", _heads(diagnosis)),
        _pair(_distances(diagnosis), _needle(diagnosis)),
        _mechanisms(diagnosis),
        _meanings(diagnosis),
    ]
    over = "the keys that each layer's mechanism keeps" if diagnosis.within_mechanism else "all keys that the base's attention sees"
    about = (
        f"<code>longattn diagnose</code> · {escape(diagnosis.model)} ({escape(diagnosis.model_class)}) · {escape(diagnosis.text)} · "
        f"{diagnosis.last.queries:,} queries · softmax over {over} · {escape(diagnosis.device)}"
    )
    named = {"model": escape(diagnosis.model), "about": about, "conclusion": escape(diagnosis.conclusion())}
    page = Template(TEMPLATE.read_text(encoding="utf-8"))
    whole = page.substitute(named, leads="\n".join(leads), body="\n".join(sections))
    return whole.replace(" %", "\N{NO-BREAK SPACE}%")


# ---- sections


def _advice(diagnosis: Diagnosis) -> str:
    best, last = diagnosis.recommend(), diagnosis.last.length
    if best is None and diagnosis.untrained:
        return _section("What to do", f"<p>{escape(NOTHING_FITS[0].upper() + NOTHING_FITS[1:])}</p>", _untrained(diagnosis), kind="todo")
    if best is None:
        advice = "No mechanism that was compared is cheaper than full attention at this length: keep it, or diagnose longer texts with "
        return _section("What to do", f"<p>{advice}<code>--lengths</code>.</p>", kind="todo")
    name, layer = f"<code>{escape(str(best.candidate))}</code>", best.lowest[1]
    where, after = f" at {best.judged_at:,} tokens" if best.judged_at != last else "", ""
    if best.enough:
        enough, kept = percent(ENOUGH), percent(best.mass)
        why = f"{name} keeps {enough} of the attention or more at the lowest cost of the mechanisms compared: it keeps {kept}"
    else:
        why = (
            f"No mechanism compared keeps {percent(ENOUGH)} of the attention for less than the cost of full attention. For at most half of "
            f"that cost, {name} keeps most: {percent(best.mass)}"
        )
        after = " What is not kept is lost, so train the model after the conversion, or keep some layers full with <code>--layers</code>."
    least = f", in layer {layer} {percent(best.lowest[0])}" if best.mass - best.lowest[0] > 0.005 else ""
    least += f". At {last:,} tokens it costs {percent(best.cost)} of full attention."
    if best.loss is not None:
        sentence = diagnosis.loss_sentence(best.loss)
        least += f" {escape(sentence[0].upper() + sentence[1:])}."
    elif diagnosis.no_loss:
        least += f" No loss was measured: {escape(diagnosis.no_loss)}"
    if diagnosis.untrained:
        least += " Only mechanisms were considered whose keys lie at distances that positions were trained for."
    button = '<button type="button" data-copy="command">Copy</button>'
    command = f'<div class="command"><code id="command">{escape(best.command)}</code>{button}</div>'
    if not best.command:
        flags = f"<code>{escape(shlex.join(best.flags))}</code>"
        command = f"<p>Convert the checkpoint that this model was made from with {flags}.</p>"
    return _section("What to do", f"<p>{why}{where}{least}{after}</p>", command, _untrained(diagnosis), kind="todo")


def _untrained(diagnosis: Diagnosis) -> str:
    """Which mechanisms are not recommended because of their positions, and why."""
    if not diagnosis.untrained:
        return ""
    entries = "".join(
        f"<dt><code>{escape(name)}</code></dt><dd>{escape(reason)}</dd>" for name, reason in sorted(diagnosis.untrained.items())
    )
    count = len(diagnosis.untrained)
    summary = f"{count} mechanism{'s' if count > 1 else ''} whose positions need training, and why"
    return f"<details><summary>{summary}</summary><dl>{entries}</dl></details>"


def _spread(diagnosis: Diagnosis) -> str:
    """Effective tokens against length, a line for each layer."""
    lengths = [one.length for one in diagnosis.lengths]
    means = [one.number("effective_tokens").nanmean(1).tolist() for one in diagnosis.lengths]
    count = len(means[0])
    low = max(1.0, min(min(row) for row in means) / 1.5)
    order = sorted(range(count), key=lambda layer: means[-1][layer])
    named = set(range(count)) if count <= 12 else {0, count - 1, order[0], order[-1]}
    lines = [Line([(one, one, f"all {one:,} tokens equally") for one in lengths], "all", "var(--mark)", dashed=True)]
    for layer in range(count):
        points = [
            (length, row[layer], f"layer {layer}, {length:,} tokens: {row[layer]:,.1f} effective tokens")
            for length, row in zip(lengths, means, strict=True)
        ]
        lines.append(Line(points, f"{layer}" if layer in named else "", colour_of(layer, count)))
    y = Axis("effective tokens", low, lengths[-1], _decades(low, lengths[-1]))
    return _section(
        "How attention dilutes as the text grows",
        "<p>Effective tokens of the average head, one line for each layer, whose number is at its end. The dashed line is attention to all "
        "tokens equally; a line parallel to it spreads as fast as the text grows.</p>",
        chart("Effective tokens against the length of the text, by layer", _length_axis(lengths), y, lines),
    )


def _heads(diagnosis: Diagnosis) -> str:
    """Layers × heads, one picture for each number and length; two controls choose."""
    views = [one for one in VIEWS if one[0] != "needle" or diagnosis.needle is not None]
    pictures = []
    for name, words, meaning in views:
        for found in diagnosis.lengths:
            values = _values(found, name)
            known = values.nan_to_num(0.0)
            shades = (known / known.max().clamp(min=1e-9)).clamp(min=0).sqrt() if name in SCALED else known
            shown = [[_cell(value, name) for value in row] for row in values.tolist()]
            titles = [[f"layer {layer}, head {head}: {text}" for head, text in enumerate(row)] for layer, row in enumerate(shown)]
            rows, heads = ([str(one) for one in range(size)] for size in values.shape)
            title = f"{words} of every head at {found.length:,} tokens"
            picture = (
                grid(title, rows, heads, shades.tolist(), shown, titles, "layer", "head") + f'<p class="meaning">{escape(meaning)}</p>'
            )
            pictures.append(_view(f"{name} {found.length}", picture, name == views[0][0] and found is diagnosis.last))
    chosen = "".join(f'<option value="{name}">{escape(words)}</option>' for name, words, _ in views)
    number = f'<label>Show <select data-shows aria-label="number shown">{chosen}</select></label>'
    return _section(
        "Every head",
        "<p>The darker, the more. Heads differ: some look at a few tokens at any length, others at everything.</p>",
        f'<div class="controls">{number}{_length_control(diagnosis)}</div>',
        *pictures,
    )


def _distances(diagnosis: Diagnosis) -> str:
    """Layers × distances, one picture for each length."""
    pictures = []
    for found in diagnosis.lengths:
        values = [layer.distance.mean(0).tolist() for layer in found.layers]
        texts = [[f"{100 * share:.0f}" for share in row] for row in values]
        shades = [[math.sqrt(min(1.0, 2 * share)) for share in row] for row in values]
        titles = [
            [
                f"layer {layer}: {percent(share)} of the attention at {_range(*bounds)}"
                for share, bounds in zip(row, found.bins, strict=True)
            ]
            for layer, row in enumerate(values)
        ]
        rows, names = [str(one) for one in range(len(values))], [_thousands(low) for low, _ in found.bins]
        title = f"Mass by distance at {found.length:,} tokens"
        picture = grid(title, rows, names, shades, texts, titles, "layer", "distance in tokens, from")
        pictures.append(_view(f"{found.length}", picture, found is diagnosis.last))
    return _section(
        "How far it looks",
        "<p>Percent of each layer's attention by the distance between query and key. Each column reaches up to the next one; 0 is the "
        "token itself. A window keeps what lies left of half its width (of all of it in a decoder).</p>",
        f'<div class="controls">{_length_control(diagnosis)}</div>',
        *pictures,
    )


def _needle(diagnosis: Diagnosis) -> str:
    """The share of the mass on the needle against length: the best heads, the mean of all, and equal weights."""
    if diagnosis.needle is None:
        return ""
    heads, lengths = diagnosis.needle_heads(BEST), [one.length for one in diagnosis.lengths]
    values = [_values(one, "needle") for one in diagnosis.lengths]

    def line(name: str, shares: Sequence[float], label: str, colour: str, dashed: bool = False) -> Line:
        points = [(length, share, f"{name}, {length:,} tokens: {percent(share)}") for length, share in zip(lengths, shares, strict=True)]
        return Line(points, label, colour, dashed)

    lines = [
        line("equal weights", [one.needle_uniform for one in diagnosis.lengths], "equal", "var(--mark)", dashed=True),
        line("mean of all heads", [float(value.nanmean()) for value in values], "mean", "var(--ink)"),
    ]
    for place, (layer, head, _) in enumerate(heads):
        shares = [float(value[layer, head]) for value in values]
        lines.append(line(f"layer {layer}, head {head}", shares, f"{layer}.{head}", colour_of(place * 2 + 1, 2 * BEST + 1)))
    low = max(1e-6, min((share for one in lines for _, share, _ in one.points if share > 0), default=0.01) / 1.4)
    ticks = [
        (step * 10.0**power, f"{step * 10.0 ** (power + 2):g} %") for power in range(-6, 0) for step in (1, 3) if step * 10.0**power >= low
    ]
    y = Axis("share of the attention", low, 1.0, [*_thinned(ticks, 5), (1.0, percent(1.0))])
    depths = ", ".join(percent(depth) for depth in diagnosis.needle.depths)
    needle, question = (escape(one.strip()) for one in (diagnosis.needle.text, diagnosis.needle.question))
    return _section(
        "Can it find a needle?",
        f"<p>“{needle}” is planted at {depths} of the text, and “{question}” is its end. The lines are how much of the question's "
        "attention falls on the planted sentence: in the heads with the most (layer.head), in the mean of all heads, and with equal "
        "weights (dashed). A head far above the dashed line finds it through the noise.</p>",
        chart("Share of the attention on the planted sentence against the length", _length_axis(lengths), y, lines, height=280),
        _depths(diagnosis, heads),
    )


def _depths(diagnosis: Diagnosis, heads: Sequence[tuple[int, int, float]]) -> str:
    """What the best heads have at each depth, as a table."""
    assert diagnosis.needle is not None
    head = "".join(f"<th>at {percent(depth)}</th>" for depth in diagnosis.needle.depths)
    rows = []
    for layer, number, _ in heads:
        cells = "".join(f"<td>{percent(float(share))}</td>" for share in diagnosis.last.layers[layer].needle[number])
        rows.append(f'<tr><td class="name">layer {layer}, head {number}</td>{cells}</tr>')
    caption = f"On the needle at {diagnosis.last.length:,} tokens, by its depth in the text"
    table = _table(caption, f'<tr><th class="name">head</th>{head}</tr>', rows, "needle by depth")
    return f"<details><summary>By depth</summary>{table}</details>"


def _mechanisms(diagnosis: Diagnosis) -> str:
    """Cost against kept mass, and the table of all candidates."""
    at, last, numbers, best = diagnosis.judged, diagnosis.last.length, diagnosis.applicable(), diagnosis.recommend()
    if not numbers:
        return _section("What each mechanism would keep", _not_applicable(diagnosis))
    mass, cost = ({number: of(number) for number in numbers} for of in (lambda one: diagnosis.mass(one, at.length), diagnosis.cost))
    front = diagnosis.front()
    order = sorted(numbers, key=lambda number: (-round(mass[number], 4), cost[number]))
    places = {number: place for place, number in enumerate(order, 1)}
    marks, rows = [], []
    for number in order:
        candidate, kept, place = diagnosis.candidates[number], at.captured()[..., number].nanmean(1), places[number]
        title = f"{place}. {candidate}: keeps {percent(mass[number])}, costs {percent(cost[number])} of full attention"
        chosen = best is not None and candidate is best.candidate
        marks.append(Mark(cost[number], mass[number], str(place), title, number in front, chosen))
        strong = ' class="strong"' if chosen else ""
        bar = f'<span class="bar"><span style="width:{100 * mass[number]:.0f}%"></span></span>'
        rows.append(
            f'<tr{strong}><td>{place}</td><td class="name"><code>{escape(str(candidate))}</code></td><td>{bar}{percent(mass[number])}</td>'
            f"<td>{percent(float(kept.min()))} ({int(kept.argmin())})</td><td>{percent(cost[number])}</td></tr>"
        )
    cheapest = max(1e-4, min(cost.values()) / 1.3)
    ticks = [(one, f"{100 * one:g} %") for one in (0.0001, 0.001, 0.01, 0.03, 0.1, 0.3, 1.0) if one >= cheapest]
    x = Axis(f"cost at {last:,} tokens, of full attention's", cheapest, 1.0, ticks)
    y = Axis("attention kept", 0.0, 1.0, [(share, percent(share)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)], log=False)
    path = [Line([(cost[number], mass[number], str(diagnosis.candidates[number])) for number in front], "", "var(--heat)")]
    picture = chart("Attention kept against cost, every mechanism", x, y, path, marks, height=340)
    head = '<tr><th>#</th><th class="name">mechanism</th><th>kept</th><th>least (layer)</th><th>cost</th></tr>'
    caption = f"Kept at {at.length:,} tokens, cost at {last:,}; the bold row is the one recommended"
    return _section(
        "What each mechanism would keep",
        "<p>The share of full attention's mass on the keys that a mechanism keeps, mean over layers and heads, against its query–key "
        "products. Filled marks are those than which no other keeps more for the same cost, the ringed one is recommended; the numbers are "
        "those of the table.</p>",
        f'<div class="pair flat"><div>{picture}</div><div>{_by_layer(diagnosis, front, places)}</div></div>',
        _table(caption, head, rows, "all mechanisms"),
        _not_applicable(diagnosis),
    )


def _by_layer(diagnosis: Diagnosis, front: Sequence[int], places: Mapping[int, int]) -> str:
    """Layers × the candidates of the front, under their numbers in the table."""
    kept = diagnosis.judged.captured().nanmean(1)[:, list(front)].tolist()
    texts = [[f"{100 * share:.0f}" for share in row] for row in kept]
    titles = [
        [f"layer {layer}: {diagnosis.candidates[number]} keeps {percent(share)}" for number, share in zip(front, row, strict=True)]
        for layer, row in enumerate(kept)
    ]
    rows, names = [str(one) for one in range(len(kept))], [str(places[number]) for number in front]
    return grid("Percent kept in each layer", rows, names, kept, texts, titles, "layer", "percent kept in each layer, by number")


def _not_applicable(diagnosis: Diagnosis) -> str:
    if not diagnosis.reasons:
        return ""
    entries = "".join(
        f"<dt><code>{escape(name)}</code></dt><dd>{escape(reason)}</dd>" for name, reason in sorted(diagnosis.reasons.items())
    )
    count = len(diagnosis.reasons)
    summary = f"{count} mechanism{'s' if count > 1 else ''} without this number, and why"
    return f"<details><summary>{summary}</summary><dl>{entries}</dl></details>"


def _meanings(diagnosis: Diagnosis) -> str:
    meanings = {
        "effective tokens": "exp of the entropy of a query's weights: attention to n tokens with equal weights has n effective tokens.",
        "dilution": "As the text grows, the same weights spread over more tokens: each counts for less, and so does what matters.",
        "first tokens": f"Mass on the first {SINK} tokens. Heads that have nothing to look for put it there; a window that leaves them out "
        "breaks such a model.",
        "needle": "A sentence planted in the text, with its question at the end: how much of the question's attention finds it.",
        "kept": "Mass of the full softmax on the keys that a mechanism lets a query see. It says what is lost before any training; a "
        "trained model makes do with less.",
        "cost": "Query–key products of attention alone, as a share of full attention's. longattn plan gives seconds for a whole model.",
        "queries": f"{diagnosis.last.queries:,} are measured at {diagnosis.last.length:,} tokens, spread over the text.",
    }
    entries = "".join(f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>" for name, meaning in meanings.items())
    return _section("What the numbers mean", f"<dl>{entries}</dl>")


# ---- their parts


def _section(heading: str, *parts: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f"<section{named}><h2>{escape(heading)}</h2>{''.join(parts)}</section>"


def _pair(*sections: str) -> str:
    shown = [one for one in sections if one]
    return shown[0] if len(shown) == 1 else f'<div class="pair">{"".join(shown)}</div>'


def _table(caption: str, head: str, rows: Sequence[str], name: str) -> str:
    """A table that scrolls by itself where it is too wide, also by keyboard."""
    region = f'<div class="wide" tabindex="0" role="region" aria-label="{name}">'
    return f"{region}<table><caption>{escape(caption)}</caption>{head}{''.join(rows)}</table></div>"


def _view(value: str, picture: str, shown: bool) -> str:
    """A picture that the controls of its section show or hide."""
    return f'<div data-view="{value}"{"" if shown else " hidden"}>{picture}</div>'


def _length_control(diagnosis: Diagnosis) -> str:
    chosen = "".join(
        f'<option value="{one.length}"{" selected" if one is diagnosis.last else ""}>{one.length:,} tokens</option>'
        for one in diagnosis.lengths
    )
    return f'<label>at <select data-shows aria-label="length shown">{chosen}</select></label>'


def _length_axis(lengths: Sequence[int]) -> Axis:
    high = max(lengths[-1], lengths[0] + 1)
    return Axis("tokens in the text", lengths[0], high, _thinned([(one, _thousands(one)) for one in lengths]))


def _values(diagnosis: LengthDiagnosis, name: str) -> Tensor:
    """``(layers, H)`` of a number of :data:`VIEWS`."""
    return diagnosis.needle() if name == "needle" else diagnosis.number(name)


def _cell(value: float, name: str) -> str:
    if math.isnan(value):
        return "–"
    if name == "effective_tokens":
        return _thousands(value) if value >= 9.95 else f"{value:.1f}"
    return percent(value).replace(" %", "%")


def _range(low: int, high: int) -> str:
    return f"distance {low:,}" if low == high else f"distances {low:,} to {high:,}"


def _thousands(value: float) -> str:
    """A number of tokens in three or four signs: 512, 2K, 2.3K, 64K."""
    if value < 1000:
        return f"{value:.0f}"
    kilo = value / 1024
    return f"{kilo:.0f}K" if kilo >= 9.95 or abs(kilo - round(kilo)) < 0.05 else f"{kilo:.1f}K"


def _decades(low: float, high: float) -> list[tuple[float, str]]:
    """Ticks of a logarithmic axis: powers of ten, with steps between them where there are few."""
    powers = [float(10**power) for power in range(7) if low <= 10**power <= high]
    if len(powers) < 3:
        powers = sorted({*powers, *(float(step * 10**power) for power in range(7) for step in (2, 5) if low <= step * 10**power <= high)})
    return [(one, f"{one:,.0f}") for one in powers]


def _thinned(ticks: list[tuple[float, str]], most: int = 7) -> list[tuple[float, str]]:
    """At most ``most`` of the ticks."""
    return ticks[:: math.ceil(len(ticks) / most) or 1]
