"""Output of every command: a report as text, or one JSON object.

Text may be from files, servers and paths. Its control characters are escaped, so that they cannot control the
terminal.
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
"""A part of a report: a sentence, a :class:`Line`, a :func:`table`, or a mapping of names to facts. Empty facts are
left out."""


class Line(str):
    """A path or a command. It is printed without line breaks, so that it can be copied."""


class SafeConsole(Console):
    """A console of rich that escapes control characters, and takes no text as markup."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """``text`` with its control characters escaped."""
        return super().render_str(visible(text), **options)


def show(values: Mapping[str, Any], report: Iterable[Part], *, as_json: bool = False) -> None:
    """Print the result of a command.

    Args:
        values: the result for JSON.
        report: the result for reading. A generator is not run for JSON.
        as_json: whether to print ``values`` as one JSON object, in place of the report.
    """
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
    """A table of names and their values, one below the other."""
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
        columns: names of the columns.
        rows: the cells of each row.
        title: title above the table.
        align: "l" (left) or "r" (right) for each column. The last letter also holds for all further columns.
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
    """Show progress on stderr, if stderr is a terminal.

    Yields a function of words and numbers. ``tell("write", 3, 10)`` shows "write 3 of 10".
    """
    with SafeConsole(stderr=True).status("loading") as status:

        def tell(words: str, *numbers: int) -> None:
            status.update(" ".join((words, " of ".join(f"{number:,}" for number in numbers))))

        yield tell
