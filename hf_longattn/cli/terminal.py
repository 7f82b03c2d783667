"""The way to the terminal of every command: what is quoted of files, servers and paths is shown, and cannot control the terminal."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table as Grid
from rich.text import Text

from ..errors import CONTROL, visible
from ..reports import Facts, Report, Sentence, Table


class SafeConsole(Console):
    """rich's console, which escapes control characters in what it is given; colours are styles and stay."""

    def render_str(self, text: str, **options: Any) -> Text:
        """With the escapes, before anything is laid out."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of text that was made elsewhere, too."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console on stdout or stderr, at most ``width`` columns wide."""
    terminal = SafeConsole(stderr=stderr, soft_wrap=False)
    return terminal if width is None else SafeConsole(stderr=stderr, soft_wrap=False, width=min(width, terminal.width))


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Shows the sentence that it is called with, on stderr while that is a terminal."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield lambda sentence: None
        return
    with screen.status("loading") as status:
        yield lambda sentence: status.update(escape(sentence))


def say(*lines: object, stderr: bool = False, end: str = "\n") -> None:
    """Print lines as they are, which are not wrapped: paths, and what is to be typed."""
    print(visible("\n".join(map(str, lines))), file=sys.stderr if stderr else sys.stdout, end=end)


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    print(CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text))


STYLES = {"strong": "bold", "quiet": "dim", "warning": "yellow", "good": "green", "bad": "bold red", "measured": "cyan"}
"""Styles of a report's parts as rich's."""


def show(report: Report) -> None:
    """Print a report."""
    screen = console(width=report.width)
    for part in report.parts:
        if isinstance(part, Sentence) and part.typed:
            say(part.text)
        elif isinstance(part, Sentence):
            text = Padding(escape(part.text), (0, 0, 0, part.indent)) if part.indent else escape(part.text)
            screen.print(text, style=STYLES.get(part.style, ""), highlight=False)
        elif isinstance(part, Facts):
            screen.print(Padding(_facts(part), (0, 0, 0, part.indent)) if part.indent else _facts(part), highlight=False)
        elif isinstance(part, Table):
            screen.print(_fitting(screen, part), highlight=False)


def _facts(facts: Facts) -> Grid:
    grid = Grid.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for fact in facts.rows:
        detail = f"\n[dim]{escape(fact.detail)}[/]" if fact.detail else ""
        grid.add_row(Text(fact.name, STYLES.get(fact.style, "")), escape(fact.value) + detail)
    return grid


def _fitting(screen: Console, table: Table) -> Grid:
    """The table, without leading columns after the first that do not fit, if it may shrink."""
    unbounded = screen.options.update(max_width=10 * screen.width)
    starts = range(1, len(table.columns)) if table.shrinks else [1]
    grids = [_grid(table, [0, *range(start, len(table.columns))]) for start in starts]
    return next((grid for grid in grids if Measurement.get(screen, unbounded, grid).maximum <= screen.width), grids[-1])


def _grid(table: Table, columns: Sequence[int]) -> Grid:
    grid = Grid(
        box=box.SIMPLE, pad_edge=False, collapse_padding=True, title=escape(table.title) or None, title_style="dim", title_justify="left"
    )
    for number in columns:
        grid.add_column(escape(table.columns[number]), justify="right" if table.alignment(number) == "r" else "left", overflow="fold")
    for number, row in enumerate(table.rows):
        style = STYLES.get(table.styles[number], "") if table.styles else ""
        grid.add_row(*(escape(row[column]) for column in columns if row), style=style)
    return grid
