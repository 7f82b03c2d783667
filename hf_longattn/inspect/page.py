"""A report as one HTML page that opens offline. ``page.html``, a jinja2 template, shows its parts."""

from __future__ import annotations

import math
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..reports import Part, Report, Section, Table
from .diagnosis import Diagnosis
from .report import audit_report
from .verdict import ReachAudit, TowersAudit

TABLE_WIDTH, LETTER_WIDTH = 384, 7.2
"""Widths in pixels of all columns of a heat table together, and of a letter."""


def html_page(found: Report | Diagnosis | ReachAudit | TowersAudit) -> str:
    """A report, or the report of a diagnosis or an audit, as an HTML page that needs no other file and no network.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if isinstance(found, Report):
        report = found
    else:
        report = audit_report(diagnosis=found) if isinstance(found, Diagnosis) else audit_report(found)
    sections: list[tuple[Section, list[Part]]] = [(Section(""), [])]
    for part in report.shown("page"):
        if isinstance(part, Section):
            sections.append((part, []))
        else:
            sections[-1][1].append(part)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["fits"] = texts_fit
    environment.filters["labelled"] = labelled_columns
    environment.tests["part"] = lambda part, name: type(part).__name__ == name
    page = environment.get_template("page.html").render(report=report, head=sections[0][1], sections=sections[1:])
    return page.replace(" %", "\N{NO-BREAK SPACE}%")


def labelled_columns(table: Table) -> list[int]:
    """Evenly spaced columns of a heat table whose names fit next to one another; column 0 has the names of the rows."""
    names = table.columns[1:]
    width = TABLE_WIDTH / max(1, len(names))
    return [*range(1, len(names) + 1, max(1, math.ceil(max(map(len, names), default=1) * LETTER_WIDTH / width)))]


def texts_fit(table: Table) -> bool:
    """Whether there is space for texts in the cells of a heat table."""
    longest = max((len(text) for row in table.rows for text in row[1:]), default=0)
    return longest * LETTER_WIDTH <= TABLE_WIDTH / max(1, len(table.columns) - 1) and len(table.rows) <= 16
