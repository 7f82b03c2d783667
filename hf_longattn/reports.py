"""Reports: what a command found, as facts, sentences and tables in order.

``cli/terminal.py`` prints a report. Texts are plain: the printer escapes them. Empty parts are left out, so callers need not ask.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Style = Literal["", "strong", "quiet", "warning", "good", "bad", "measured"]


@dataclass(frozen=True)
class Sentence:
    """A line of text.

    typed: a path or a command, which is not wrapped. indent: in columns of a terminal.
    """

    text: str
    style: Style = ""
    typed: bool = False
    indent: int = 0


@dataclass(frozen=True)
class Fact:
    """A name with its value. detail: a second line."""

    name: str
    value: str
    detail: str = ""
    style: Style = "strong"


@dataclass(frozen=True)
class Facts:
    """Names with their values, one a line."""

    rows: Sequence[Fact]
    indent: int = 0


@dataclass(frozen=True)
class Table:
    """Rows of texts; an empty row separates the rows before and after it.

    align: a letter a column, "l" or "r"; the last one holds for all further columns.
    styles: of each row. shrinks: whether leading columns after the first are left out where not all fit.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    align: str = "lr"
    styles: Sequence[Style] = ()
    shrinks: bool = False

    @classmethod
    def of_columns(cls, columns: Mapping[str, Sequence[str]], title: str = "", align: str = "lr") -> Table:
        """A table of columns by their names; empty ones are left out."""
        filled = {name: cells for name, cells in columns.items() if any(cells)}
        return cls([*filled], [*zip(*filled.values(), strict=True)], title, align)

    def alignment(self, column: int) -> str:
        """ "l" or "r"."""
        return self.align[min(column, len(self.align) - 1)]


Part = Sentence | Facts | Table


@dataclass
class Report:
    """Parts in order. width: maximum columns of a terminal."""

    width: int | None = None
    parts: list[Part] = field(default_factory=list)

    def gap(self) -> None:
        """An empty line."""
        self.parts.append(Sentence(""))

    def say(self, text: str, style: Style = "", *, typed: bool = False, indent: int = 0) -> None:
        """Append a sentence."""
        if text:
            self.parts.append(Sentence(text, style, typed, indent))

    def facts(self, *rows: tuple[str, str] | Fact, indent: int = 0) -> None:
        """Append facts; those without a value are left out."""
        facts = [row if isinstance(row, Fact) else Fact(*row) for row in rows]
        if kept := [fact for fact in facts if fact.value]:
            self.parts.append(Facts(kept, indent))

    def table(self, table: Table) -> None:
        """Append a table, unless it has no rows."""
        if table.rows:
            self.parts.append(table)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, without a newline at its end."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows) if cells)
