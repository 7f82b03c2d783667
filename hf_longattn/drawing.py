"""Drawings by matplotlib, which is imported when something is drawn: figures in files, and charts as SVG for an HTML page.

Colours of a :class:`Chart` are CSS variables of the page, so that it follows the page's light or dark theme. The ``<title>`` of a point
says what it stands for: browsers show it as a tooltip, and screen readers read it.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from .errors import LongAttentionError, check_extra, needs_extra
from .staging import check_new_file, staged_file

WIDTH, HEIGHT = 460, 300
"""Width and height of a chart in points. Text of 12 points stays legible if the chart is scaled to 360 pixels."""
LABEL_HEIGHT = 13
"""Minimum vertical distance in points between labels at the ends of lines."""
INK, SOFT, RULE, MARK = (f"#00000{number}" for number in range(1, 5))
VARIABLES = {INK: "ink", SOFT: "soft", RULE: "rule", MARK: "mark"}
"""Placeholder colours that nothing else has -> CSS variables of the page that replace them."""
SVG = {"svg.hashsalt": "longattn", "svg.fonttype": "none"}
"""matplotlib's settings for SVG files that are equal for equal drawings, with text as text."""
MOST_TICKS = 7
"""Maximum number of labelled values on an axis."""


def new_figure(width: float, height: float, **options: Any) -> Any:
    """An empty figure of matplotlib, in inches, which needs no display.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with needs_extra("plot"):
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), **options)


def check_image(file: Path) -> None:
    """Refuse a file that cannot be drawn into, before what is drawn is computed.

    Raises:
        LongAttentionError: matplotlib is not installed or does not support the file's extension, the file exists, or its folder does not.
    """
    check_extra("plot")
    known = sorted(new_figure(1, 1).canvas.get_supported_filetypes())
    if file.suffix.lstrip(".").lower() not in known:
        raise LongAttentionError(f"Cannot draw into {str(file)!r}: give a name that ends in one of {', '.join(known)}.")
    check_new_file(file)


def save(figure: Any, file: Path) -> None:
    """Write a figure into a file.

    Raises:
        LongAttentionError: matplotlib does not support the file's extension.
        CheckpointError: the file cannot be written.
    """
    from matplotlib import rc_context

    try:
        with staged_file(file) as stage, rc_context(SVG):
            figure.savefig(stage, dpi=120, **({"metadata": {"Date": None}} if file.suffix.lower() == ".svg" else {}))
    except LongAttentionError:
        raise
    except ValueError as error:
        raise LongAttentionError(f"Cannot draw into {str(file)!r}: {error}.") from error


class Axis(NamedTuple):
    """An axis of a chart.

    text: the label of a value. ticks: values with labels; by default 1, 2, 5, 10 … as far as there is space.
    """

    name: str
    limits: tuple[float, float]
    text: Callable[[float], str]
    ticks: Sequence[float] = ()
    log: bool = True


class Chart:
    """Lines over two axes; text has 12 units. title: the label for screen readers."""

    def __init__(self, title: str, x: Axis, y: Axis) -> None:
        self.title, self.titles, self.labels = title, list[str](), list[tuple[float, float, str, str]]()
        self.figure = new_figure(WIDTH / 72, HEIGHT / 72, layout="constrained")
        self.axis: Any = self.figure.subplots()
        for letter, axis in (("x", x), ("y", y)):
            low, high = axis.limits
            ticks = axis.ticks or [value for power in range(-6, 7) for step in (1, 2, 5) if low <= (value := step * 10.0**power) <= high]
            shown = ticks[:: math.ceil(len(ticks) / MOST_TICKS) or 1]
            values = {"scale": "log" if axis.log else "linear", "lim": axis.limits, "ticks": shown, "ticklabels": map(axis.text, shown)}
            self.axis.set(**{letter + name: value for name, value in values.items()})
        self.axis.minorticks_off()
        self.axis.tick_params(length=0, pad=8, labelsize=12, labelcolor=SOFT)
        self.axis.set_xlabel(x.name, color=INK, fontsize=12.5)
        self.axis.set_ylabel(y.name, color=INK, fontsize=12.5)
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

    def svg(self) -> Markup:
        """The chart as an SVG element."""
        from matplotlib import rc_context

        self._write_labels()
        buffer = io.StringIO()
        with rc_context(SVG):
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
