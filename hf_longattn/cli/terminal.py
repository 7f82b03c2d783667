"""Terminal output of every command: a report as text, or one JSON object.

Control characters in text from files, servers and paths are escaped, so that it cannot control the terminal.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ..errors import CONTROL, visible

Part = RenderableType | Mapping[str, str]
"""A part of a report: a sentence, a :class:`Line`, a :func:`table`, or a mapping of facts. Facts without a value are
left out."""


class Line(str):
    """A path or a command, which is not wrapped."""


class SafeConsole(Console):
    """A rich console without markup. Escapes control characters before layout."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """``text`` with its control characters escaped."""
        return super().render_str(visible(text), **options)


def show(values: Mapping[str, Any], report: Iterable[Part], *, as_json: bool = False) -> None:
    """Print a result: its ``values`` as one JSON object, or the parts of its ``report`` (a generator, not run for
    JSON)."""
    if as_json:
        text = json.dumps(values, indent=2, ensure_ascii=False, default=str)
        print(CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text))
        return
    console = SafeConsole()
    for part in report:
        if isinstance(part, Line):
            print(visible(part))
        elif isinstance(part, Mapping):
            console.print(facts((name, value) for name, value in part.items() if value))
        else:
            console.print(part)


def facts(rows: Iterable[tuple[RenderableType, RenderableType]]) -> Table:
    """Names and their values, one below the other."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None, align: str = "lr"
) -> RenderableType:
    """A table, or an empty line if it has no rows.

    Args:
        align: "l" or "r" for each column; the last one holds for all further columns.
    """
    grid = Table(
        box=box.SIMPLE, pad_edge=False, collapse_padding=True, title=title, title_style="dim", title_justify="left"
    )
    for column, letter in zip(columns, align.ljust(len(columns), align[-1]), strict=False):
        grid.add_column(column, justify="right" if letter == "r" else "left", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid if grid.row_count else ""


@contextlib.contextmanager
def progress() -> Iterator[Callable[..., None]]:
    """Show progress on stderr, if that is a terminal: words, and "done of total" if numbers are given."""
    with SafeConsole(stderr=True).status("loading") as status:
        yield lambda words, *numbers: status.update(
            " ".join((words, " of ".join(f"{number:,}" for number in numbers)))
        )
