"""Reports: what a command found, as facts, sentences, tables and drawings in order.

A product says once what its report has. ``cli/terminal.py`` prints a report, ``inspect/page.py`` writes it as an HTML page, and
:meth:`Report.markdown` as Markdown. Texts are plain: every printer escapes them. Empty parts are left out, so callers need not ask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Style = Literal["", "strong", "quiet", "warning", "good", "bad", "measured"]
Only = Literal["", "terminal", "page"]
"""Where a part is shown; everywhere if empty."""


@dataclass(frozen=True)
class Sentence:
    """A line of text.

    typed: a path or a command, which a terminal does not wrap and a page offers to copy. indent: in columns of a terminal.
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
    """Names with their values, one a line. summary: the line under which a page folds them."""

    rows: Sequence[Fact]
    indent: int = 0
    summary: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of texts; an empty row separates the rows before and after it.

    align: a letter a column, "l" or "r"; the last one holds for all further columns.
    styles: of each row. shrinks: whether leading columns after the first are left out where not all fit.
    shares, tooltips: of each cell, for a page; the larger a share from 0 to 1, the darker the cell.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    align: str = "lr"
    styles: Sequence[Style] = ()
    shrinks: bool = False
    shares: Sequence[Sequence[float]] = ()
    tooltips: Sequence[Sequence[str]] = ()

    @classmethod
    def of_columns(cls, columns: Mapping[str, Sequence[str]], title: str = "", align: str = "lr") -> Table:
        """A table of columns by their names; empty ones are left out."""
        filled = {name: cells for name, cells in columns.items() if any(cells)}
        return cls([*filled], [*zip(*filled.values(), strict=True)], title, align)

    def alignment(self, column: int) -> str:
        """ "l" or "r"."""
        return self.align[min(column, len(self.align) - 1)]


@dataclass(frozen=True)
class Drawing:
    """draw: returns an SVG element or the address of an image. It is called by what shows it, since it imports matplotlib."""

    draw: Callable[[], str]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """The beginning of a section of a page. text: its first paragraph."""

    title: str
    text: str = ""


Part = Sentence | Facts | Table | Drawing | Section


@dataclass
class Report:
    """Parts in order. title: of a page. about: the line above it. width: maximum columns of a terminal."""

    title: str = ""
    about: str = ""
    width: int | None = None
    parts: list[tuple[Only, Part]] = field(default_factory=list)

    def add(self, part: Part, only: Only = "") -> None:
        """Append any part."""
        self.parts.append((only, part))

    def shown(self, where: Literal["terminal", "page"]) -> list[Part]:
        """The parts that are shown there."""
        return [part for only, part in self.parts if only in ("", where)]

    def section(self, title: str, text: str = "") -> None:
        """Begin a section of the page."""
        self.add(Section(title, text), "page")

    def gap(self) -> None:
        """An empty line on a terminal."""
        self.add(Sentence(""), "terminal")

    def say(self, text: str, style: Style = "", *, only: Only = "", typed: bool = False, indent: int = 0) -> None:
        """Append a sentence."""
        if text:
            self.add(Sentence(text, style, typed, indent), only)

    def facts(self, *rows: tuple[str, str] | Fact, only: Only = "", indent: int = 0, summary: str = "") -> None:
        """Append facts; those without a value are left out."""
        facts = [row if isinstance(row, Fact) else Fact(*row) for row in rows]
        if kept := [fact for fact in facts if fact.value]:
            self.add(Facts(kept, indent, summary), only)

    def table(self, table: Table, only: Only = "") -> None:
        """Append a table, unless it has no rows."""
        if table.rows:
            self.add(table, only)

    def markdown(self) -> str:
        """The page in Markdown, without its drawings."""
        blocks = [f"# {self.title}"]
        for part in self.shown("page"):
            if isinstance(part, Section):
                blocks += [f"## {part.title}", *([part.text] if part.text else [])]
            elif isinstance(part, Sentence):
                blocks.append(f"    {part.text}" if part.typed else part.text)
            elif isinstance(part, Facts):
                blocks.append("\n".join(f"- {fact.name}: {fact.value}" for fact in part.rows))
            elif isinstance(part, Table):
                blocks += [*([f"{part.title}:"] if part.title else []), markdown_table(part.columns, part.rows)]
        return "\n\n".join(blocks) + "\n"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, without a newline at its end."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows) if cells)
