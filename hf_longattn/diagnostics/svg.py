"""Pictures of a diagnosis as inline SVG: lines, grids of shares, and marks. Colours come from the page's style, so that they follow light
and dark; what a mark stands for is in its ``<title>``, which browsers show where the pointer is, and which screen readers read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 460
"""Units of a picture's width; text of 12 units stays legible at 360 pixels."""
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 40
LETTER = 7.2
"""Width of a letter in cells and ticks, at most."""
RAMP = ("#6b3fa0", "#4b57b5", "#2f74b8", "#1f8fa8", "#24a584", "#5fae4b", "#a5a52f", "#cf8f2a", "#dd6b3b")
"""Colours of layers from the first to the last, legible on light and on dark ground."""


@dataclass(frozen=True)
class Line:
    """Points ``(x, y, title)`` joined by a line.

    label: beside the last point; empty for none.
    colour: a CSS colour.
    dashed: for what is compared with.
    """

    points: Sequence[tuple[float, float, str]]
    label: str
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis: from ``low`` to ``high``, logarithmic or not, with ``ticks`` ``(value, text)`` and a name."""

    name: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = True

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        low, high, value = (math.log(max(one, 1e-12)) if self.log else one for one in (self.low, self.high, value))
        return min(1.0, max(0.0, (value - low) / ((high - low) or 1.0)))


@dataclass(frozen=True)
class Mark:
    """A numbered point: ``text`` in it, ``title`` when pointed at; filled if ``strong``, with a ring if ``chosen``."""

    x: float
    y: float
    text: str
    title: str
    strong: bool
    chosen: bool = False


def colour_of(number: int, count: int) -> str:
    """The colour of layer ``number`` of ``count``."""
    place = 0.0 if count < 2 else number * (len(RAMP) - 1) / (count - 1)
    low = min(int(place), len(RAMP) - 2)
    ends = [[int(one[at : at + 2], 16) for at in (1, 3, 5)] for one in RAMP[low : low + 2]]
    mixed = (round(a + (b - a) * (place - low)) for a, b in zip(*ends, strict=True))
    return "#" + "".join(f"{one:02x}" for one in mixed)


def chart(title: str, x: Axis, y: Axis, lines: Sequence[Line] = (), marks: Sequence[Mark] = (), height: int = 300) -> str:
    """Lines and marks over two axes."""
    wide, high = WIDTH - LEFT - RIGHT - 34, height - TOP - BOTTOM

    def at(px: float, py: float) -> tuple[float, float]:
        return LEFT + x.share(px) * wide, TOP + (1 - y.share(py)) * high

    parts = []
    for value, text in y.ticks:
        level = at(x.low, value)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + wide}" y1="{level:.1f}" y2="{level:.1f}"/>')
        parts.append(_text("tick", LEFT - 7, level + 4, text, "end"))
    for value, text in x.ticks:
        place = at(value, y.low)[0]
        parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{TOP + high}"/>')
        parts.append(_text("tick", place, TOP + high + 17, text))
    parts += [_text("axis", LEFT + wide / 2, height - 4, x.name), _upright(TOP + high / 2, y.name)]
    labels: list[tuple[float, float, Line]] = []
    for line in lines:
        places = [at(px, py) for px, py, _ in line.points]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2"{dash}/>')
        for (px, py), (_, _, told) in zip(places, line.points, strict=True):
            dot = f'cx="{px:.1f}" cy="{py:.1f}" r="{3 if line.dashed else 4}" fill="{line.colour}"'
            parts.append(f"<circle {dot}><title>{escape(told)}</title></circle>")
        if line.label and places:
            labels.append((places[-1][1], places[-1][0] + 8, line))
    for level, place, line in _spaced(labels, TOP + high):
        parts.append(_text("label", place, level, line.label, "start", f' fill="{line.colour}"'))
    for mark in sorted(marks, key=lambda one: (one.chosen, one.strong)):
        px, py = at(mark.x, mark.y)
        inside = f'<circle cx="{px:.1f}" cy="{py:.1f}" r="9"/>{_text("number", px, py + 3.5, mark.text)}<title>{escape(mark.title)}</title>'
        kinds = ("mark", *(["strong"] if mark.strong else []), *(["chosen"] if mark.chosen else []))
        parts.append(f'<g class="{" ".join(kinds)}">{inside}</g>')
    return _svg(title, height, parts)


def _spaced(labels: list[tuple[float, float, Line]], lowest: float) -> Iterable[tuple[float, float, Line]]:
    """Labels ``(height, place, line)``, moved apart where they would overlap."""
    free = lowest + 17.0
    for height, place, line in sorted(labels, key=lambda one: -one[0]):
        free = min(free - 13, height + 4)
        yield free, place, line


def grid(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    shares: Sequence[Sequence[float]],
    texts: Sequence[Sequence[str]],
    titles: Sequence[Sequence[str]],
    row_name: str,
    column_name: str,
) -> str:
    """A table of cells, the darker the greater its share from 0 to 1, with a text in each where there is space."""
    wide, high = (WIDTH - LEFT - RIGHT) / max(1, len(columns)), 24.0 if len(rows) <= 16 else 15.0
    top, middle = 36, LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts = [_text("axis", middle, 12, column_name)]
    every = max(1, math.ceil(max(map(len, columns), default=1) * LETTER / wide))
    parts += [_text("tick", LEFT + (place + 0.5) * wide, top - 6, name) for place, name in enumerate(columns) if place % every == 0]
    written = max((len(one) for row in texts for one in row), default=0) * LETTER <= wide and len(rows) <= 16
    for row, name in enumerate(rows):
        y = top + row * high
        if len(rows) <= 32 or row % 4 == 0:
            parts.append(_text("tick", LEFT - 7, y + high / 2 + 4, name, "end"))
        for column, given in enumerate(shares[row]):
            x, share = LEFT + column * wide, min(1.0, max(0.0, given))
            size = f'x="{x:.1f}" y="{y:.0f}" width="{wide - 1.5:.1f}" height="{high - 1.5}"'
            kind = "on" if share > 0.55 else "off"
            inside = _text(kind, x + wide / 2 - 0.7, y + high / 2 + 3.5, texts[row][column]) if written else ""
            title_element = f"<title>{escape(titles[row][column])}</title>"
            parts.append(f'<g><rect class="cell" {size} fill-opacity="{share:.2f}"/>{inside}{title_element}</g>')
    height = top + len(rows) * high + 4
    return _svg(title, height, [*parts, _upright((top + height) / 2, row_name)])


def _text(kind: str, x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _upright(middle: float, text: str) -> str:
    """The name of the vertical axis."""
    return _text("axis", -middle, 12, text, more=' transform="rotate(-90)"')


def _svg(title: str, height: float, parts: Iterable[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
