"""Charts of a diagnosis, drawn by matplotlib as SVG for an HTML page.

Colours are CSS variables of the page, so that charts follow its light or dark theme. The ``<title>`` of a point or mark says what it stands
for: browsers show it as a tooltip, and screen readers read it.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape
from torch import Tensor

from ..errors import needs_extra
from .diagnosis import CandidateRow, Diagnosis, percent

with needs_extra("plot"):
    from matplotlib import rc_context
    from matplotlib.colors import LinearSegmentedColormap, to_hex
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 460, 300
"""Width and height of a chart in points. Text of 12 points stays legible if the chart is scaled to 360 pixels."""
LABEL_HEIGHT = 13
"""Minimum vertical distance in points between labels at the ends of lines."""
INK, SOFT, RULE, MARK, HEAT, ON_HEAT, CARD = (f"#00000{number}" for number in range(1, 8))
VARIABLES = {INK: "ink", SOFT: "soft", RULE: "rule", MARK: "mark", HEAT: "heat", ON_HEAT: "on-heat", CARD: "card"}
"""Placeholder colours that nothing else has -> CSS variables of the page that replace them."""
LAYERS = LinearSegmentedColormap.from_list(
    "layers", ["#6b3fa0", "#4b57b5", "#2f74b8", "#1f8fa8", "#24a584", "#5fae4b", "#a5a52f", "#cf8f2a", "#dd6b3b"]
)
"""Colours of layers from the first to the last, legible on light and dark backgrounds."""
NEEDLE_HEADS = 4
"""Number of heads with a line in the needle chart."""
Ticks = Sequence[tuple[float, str]]


class Chart:
    """Lines and marks over two axes; text has 12 units.

    Args:
        title: the chart's label for screen readers.
        x_ticks, y_ticks: values with their labels.
        log_y: whether the vertical axis is logarithmic. The horizontal axis always is.
    """

    def __init__(
        self, title: str, x_name: str, x_limits: tuple[float, float], x_ticks: Ticks, y_name: str, y_limits: tuple[float, float],
        y_ticks: Ticks, *, log_y: bool = True, height: int = HEIGHT,
    ) -> None:  # fmt: skip
        self.title, self.titles, self.labels = title, list[str](), list[tuple[float, float, str, str]]()
        self.figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        self.axis: Any = self.figure.subplots()
        self.axis.set_xscale("log")
        if log_y:
            self.axis.set_yscale("log")
        self.axis.set_xlim(*x_limits)
        self.axis.set_ylim(*y_limits)
        self.axis.set_xticks([value for value, _ in x_ticks], [text for _, text in x_ticks])
        self.axis.set_yticks([value for value, _ in y_ticks], [text for _, text in y_ticks])
        self.axis.minorticks_off()
        self.axis.tick_params(length=0, pad=8, labelsize=12, labelcolor=SOFT)
        self.axis.set_xlabel(x_name, color=INK, fontsize=12.5)
        self.axis.set_ylabel(y_name, color=INK, fontsize=12.5)
        self.axis.grid(color=RULE, linewidth=1)
        self.axis.set_axisbelow(True)
        self.axis.spines[:].set_visible(False)

    def line(self, points: Sequence[tuple[float, float, str]], label: str, colour: str, *, dashed: bool = False) -> None:
        """Draw a line through points ``(x, y, title)``, with ``label`` at its end. The reference for other lines is ``dashed``."""
        style = {"linestyle": (0, (5, 4))} if dashed else {}
        self.axis.plot([x for x, _, _ in points], [y for _, y, _ in points], color=colour, linewidth=2, clip_on=False, **style)
        for x, y, title in points:
            (point,) = self.axis.plot([x], [y], "o", color=colour, markersize=6 if dashed else 8, clip_on=False)
            self._entitle(point, title)
        if label:
            self.labels.append((*points[-1][:2], label, colour))

    def mark(self, x: float, y: float, text: str, title: str, *, strong: bool, chosen: bool) -> None:
        """Draw a circle with ``text`` in it, filled if ``strong``, with a ring if ``chosen``."""
        edge, width = (INK, 2.5) if chosen else (HEAT if strong else MARK, 1.5)
        (circle,) = self.axis.plot(
            [x], [y], "o", markersize=18, markerfacecolor=HEAT if strong else CARD, markeredgecolor=edge, markeredgewidth=width,
            clip_on=False, zorder=3 + strong + 2 * chosen,
        )  # fmt: skip
        number = self.axis.text(
            x, y, text, fontsize=10.5, color=ON_HEAT if strong else SOFT, ha="center", va="center_baseline", zorder=circle.zorder
        )
        for artist in (circle, number):
            self._entitle(artist, title)

    def svg(self) -> Markup:
        """The chart as an SVG element."""
        self._write_labels()
        buffer = io.StringIO()
        with rc_context({"svg.hashsalt": "longattn", "svg.fonttype": "none"}):
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            self.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        drawing = buffer.getvalue()
        drawing = re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawing[drawing.index("<svg") :])  # HTML needs no namespaces
        drawing = re.sub(r'<g id="([^"]*)">', lambda group: f"<g>{self._title(group[1])}", drawing)  # ids would repeat in a page
        for colour, variable in VARIABLES.items():
            drawing = drawing.replace(colour, f"var(--{variable})")
        return Markup(drawing.replace("<svg", f'<svg role="img" aria-label="{escape(self.title)}"', 1))

    def _entitle(self, artist: Any, title: str) -> None:
        artist.set_gid(f"title {len(self.titles)}")
        self.titles.append(title)

    def _title(self, name: str) -> str:
        return f"<title>{escape(self.titles[int(name.split()[1])])}</title>" if name.startswith("title ") else ""

    def _write_labels(self) -> None:
        """Write the labels at the ends of lines, moved apart if they would overlap."""
        if not self.labels:
            return
        self.figure.draw_without_rendering()
        entries = sorted(self.labels, key=lambda entry: entry[1])
        to_shares = self.axis.transData + self.axis.transAxes.inverted()
        shares = [float(share) for _, share in to_shares.transform([entry[:2] for entry in entries])]
        gap = LABEL_HEIGHT / (self.axis.bbox.height * 72 / self.figure.dpi)
        for place in range(1, len(shares)):  # upwards from the lowest
            shares[place] = max(shares[place], shares[place - 1] + gap)
        for place in reversed(range(len(shares))):  # and not beyond the top
            shares[place] = min(shares[place], 1.0 - gap * (len(shares) - 1 - place))
        for (x, _, label, colour), share in zip(entries, shares, strict=True):
            self.axis.annotate(
                label, (x, share), xycoords=("data", "axes fraction"), xytext=(8, 0), textcoords="offset points", va="center", fontsize=12,
                fontweight="bold", color=colour, annotation_clip=False,
            )  # fmt: skip


def spread_chart(diagnosis: Diagnosis) -> Markup:
    """Chart of effective tokens against length, with a line for each layer."""
    unit = diagnosis.unit
    lengths = [row.length for row in diagnosis.lengths]
    means = [row.number("effective_tokens").nanmean(1).tolist() for row in diagnosis.lengths]
    count = len(means[0])
    low = max(1.0, min(min(row) for row in means) / 1.5)
    order = sorted(range(count), key=lambda layer: means[-1][layer])
    labelled = set(range(count)) if count <= 12 else {0, count - 1, order[0], order[-1]}
    chart = Chart(
        f"Effective {unit} against the length of the {diagnosis.input_noun}, by layer", *_length_axis(diagnosis), f"effective {unit}",
        (low, lengths[-1]), _decades(low, lengths[-1]),
    )  # fmt: skip
    chart.line([(length, length, f"all {diagnosis.in_words(length)} equally") for length in lengths], "all", MARK, dashed=True)
    for layer in range(count):
        points = [
            (length, row[layer], f"layer {layer}, {diagnosis.in_words(length)}: {row[layer]:,.1f} effective {unit}")
            for length, row in zip(lengths, means, strict=True)
        ]
        chart.line(points, str(layer) if layer in labelled else "", _colour(layer, count))
    return chart.svg()


def needle_chart(diagnosis: Diagnosis) -> Markup:
    """Chart of the attention on the needle against length: heads with the largest share, mean of all heads, and equal weights."""
    lengths, values = [row.length for row in diagnosis.lengths], [row.needle() for row in diagnosis.lengths]
    heads = diagnosis.needle_heads(NEEDLE_HEADS)
    lines = [
        ("equal weights", "equal", MARK, [row.needle_uniform for row in diagnosis.lengths]),
        ("mean of all heads", "mean", INK, [float(value.nanmean()) for value in values]),
        *(
            (
                f"layer {layer}, head {head}", f"{layer}.{head}", _colour(2 * place + 1, 2 * NEEDLE_HEADS + 1),
                [float(value[layer, head]) for value in values],
            )
            for place, (layer, head, _) in enumerate(heads)
        ),
    ]  # fmt: skip
    low = max(1e-6, min((share for *_, shares in lines for share in shares if share > 0), default=0.01) / 1.4)
    steps = [step * 10.0**power for power in range(-6, 0) for step in (1, 3)]
    ticks = _every_few([(share, f"{100 * share:g} %") for share in steps if share >= low], 5)
    chart = Chart(
        "Share of the attention on the planted sentence against the length", *_length_axis(diagnosis), "share of the attention", (low, 1.0),
        [*ticks, (1.0, percent(1.0))], height=280,
    )  # fmt: skip
    for name, label, colour, shares in lines:
        points = [
            (length, max(share, low), f"{name}, {length:,} tokens: {percent(share)}") for length, share in zip(lengths, shares, strict=True)
        ]
        chart.line(points, label, colour, dashed=label == "equal")
    return chart.svg()


def cost_chart(diagnosis: Diagnosis, rows: Mapping[int, CandidateRow]) -> Markup:
    """Chart of kept attention against cost, with a mark for each of :meth:`~.diagnosis.Diagnosis.candidate_rows`."""
    cheapest = max(1e-4, min(row.cost for row in rows.values()) / 1.3)
    chart = Chart(
        "Attention kept against cost, every mechanism", f"cost at {diagnosis.in_words(diagnosis.last.length)}, of full attention's",
        (cheapest, 1.0),
        [(share, f"{100 * share:g} %") for share in (0.0001, 0.001, 0.01, 0.03, 0.1, 0.3, 1.0) if share >= cheapest],
        "attention kept", (0.0, 1.0), [(share, percent(share)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)], log_y=False, height=340,
    )  # fmt: skip
    chart.line([(rows[number].cost, rows[number].mass, str(rows[number].candidate)) for number in diagnosis.front()], "", HEAT)
    for row in rows.values():
        title = f"{row.place}. {row.candidate}: keeps {percent(row.mass)}, costs {percent(row.cost)} of full attention"
        chart.mark(min(row.cost, 1.0), row.mass, str(row.place), title, strong=row.on_front, chosen=row.recommended)
    return chart.svg()


def attention_on_picture(pixels: Tensor, attention: Tensor) -> str:
    """Heat map of the ``attention (rows, columns)`` on the patches of a picture ``(height, width, 3)``, as a data URL of a PNG."""
    height, width = pixels.shape[:2]
    figure = Figure(figsize=(4 * width / max(height, width), 4 * height / max(height, width)), dpi=120)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    extent = (0, width, height, 0)
    axis.imshow(pixels.numpy(), extent=extent)
    axis.imshow(attention.numpy(), extent=extent, cmap="magma", alpha=0.6, interpolation="nearest")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def thousands(value: float) -> str:
    """A number of tokens as a short text: 512, 2K, 2.3K, 64K."""
    if value < 1000:
        return f"{value:.0f}"
    kilo = value / 1024
    return f"{kilo:.0f}K" if kilo >= 9.95 or abs(kilo - round(kilo)) < 0.05 else f"{kilo:.1f}K"


def _colour(number: int, count: int) -> str:
    return to_hex(LAYERS(number / max(1, count - 1)))


def _length_axis(diagnosis: Diagnosis) -> tuple[str, tuple[float, float], Ticks]:
    lengths = [row.length for row in diagnosis.lengths]
    high = max(lengths[-1], lengths[0] + 1)
    return (
        f"{diagnosis.unit} in the {diagnosis.input_noun}",
        (lengths[0], high),
        _every_few([(length, thousands(length)) for length in lengths]),
    )


def _decades(low: float, high: float) -> Ticks:
    """Ticks of a logarithmic axis: powers of ten, and their multiples by 2 and 5 if there are fewer than three powers."""
    powers = [float(10**power) for power in range(7) if low <= 10**power <= high]
    if len(powers) < 3:
        powers = sorted({*powers, *(float(step * 10**power) for power in range(7) for step in (2, 5) if low <= step * 10**power <= high)})
    return [(value, f"{value:,.0f}") for value in powers]


def _every_few(ticks: Ticks, most: int = 7) -> Ticks:
    """At most ``most`` of the ticks, evenly spaced."""
    return ticks[:: math.ceil(len(ticks) / most) or 1]
