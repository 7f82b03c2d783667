"""A diagnosis as one HTML page that opens offline: conclusion, next command, charts, tables, and the meaning of the numbers.

The page's text is in ``page.html``, a jinja2 template that extends ``base.html``. This module prepares the values for it.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor

from ..errors import sentence_case
from .diagnosis import ENOUGH, NOTHING_FITS, CandidateRow, Diagnosis, LengthDiagnosis, in_seconds, percent
from .layer_attention import SINK

VIEWS = {
    "effective_tokens": ("effective {unit}", "As many {unit} with equal weights have the same entropy."),
    "attended_share": ("share of the {text} attended to", "Effective {unit} as a share of the {unit} that a query sees."),
    "largest_weight": ("largest weight", "The largest attention weight of a query."),
    "first_tokens": ("mass on the first {unit}", f"The share of the attention on the first {SINK} {{unit}}, a sink."),
    "needle": ("mass on the needle", "The share of the question's attention on the planted sentence."),
}
"""Numbers that the heat table of all heads can show: name -> title and explanation, with placeholders ``{unit}`` and ``{text}``."""
SCALED = ("effective_tokens", "needle")
"""Numbers for which the darkest colour stands for the table's maximum. For all other numbers it stands for 1."""
TABLE_WIDTH, LETTER_WIDTH = 384, 7.2
"""Widths in pixels of all columns of a heat table together, and of a letter."""


@dataclass(frozen=True)
class HeatTable:
    """A heat map as a table: the larger the share of a cell, the darker it is.

    name: identifier by which the page's controls select this table.
    row_name, column_name: nouns for rows and columns, for example "layer" and "head".
    columns: names of the columns; rows are numbered.
    shares: ``[row][column]``, 0 to 1. texts: shown in the cells if there is space. titles: the cells' tooltips.
    """

    name: str
    title: str
    column_name: str
    columns: Sequence[str]
    shares: Sequence[Sequence[float]]
    texts: Sequence[Sequence[str]]
    titles: Sequence[Sequence[str]]
    meaning: str = ""
    row_name: str = "layer"

    @property
    def labelled_columns(self) -> range:
        """Evenly spaced columns whose names fit next to one another."""
        width = TABLE_WIDTH / max(1, len(self.columns))
        return range(0, len(self.columns), max(1, math.ceil(max(map(len, self.columns), default=1) * LETTER_WIDTH / width)))

    @property
    def labelled_rows(self) -> range:
        """Rows that show their number."""
        return range(0, len(self.shares), 1 if len(self.shares) <= 32 else 4)

    @property
    def has_texts(self) -> bool:
        """Whether there is space for texts in the cells."""
        longest = max((len(text) for row in self.texts for text in row), default=0)
        return longest * LETTER_WIDTH <= TABLE_WIDTH / max(1, len(self.columns)) and len(self.shares) <= 16


def html_page(diagnosis: Diagnosis) -> str:
    """The diagnosis as an HTML page that needs no other file and no network.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from .charts import NEEDLE_HEADS, cost_chart, needle_chart, spread_chart

    rows = diagnosis.candidate_rows()
    return render(
        "page.html",
        diagnosis=diagnosis,
        best=diagnosis.recommend(),
        join=shlex.join,
        enough=ENOUGH,
        first_tokens=SINK,
        nothing_fits=NOTHING_FITS,
        spread=spread_chart(diagnosis) if len(diagnosis.lengths) > 1 else "",
        views={name: _words(diagnosis, name)[0] for name in VIEWS if name != "needle" or diagnosis.needle is not None},
        heads=[table for name in VIEWS for table in _head_tables(diagnosis, name)],
        distances=_distance_tables(diagnosis),
        needle="" if diagnosis.needle is None else needle_chart(diagnosis),
        needle_heads=diagnosis.needle_heads(NEEDLE_HEADS),
        costs=cost_chart(diagnosis, rows) if rows else "",
        by_layer=_layer_table(diagnosis, rows),
        rows=rows.values(),
    )


def render(template: str, **values: Any) -> str:
    """Render a template in this folder, which extends ``base.html``."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "commas": "{:,}".format, "sentence": sentence_case}
    return environment.get_template(template).render(values).replace(" %", "\N{NO-BREAK SPACE}%")


def _words(diagnosis: Diagnosis, name: str) -> tuple[str, str]:
    """Title and explanation of a number in :data:`VIEWS`."""
    words, meaning = (words.format(unit=diagnosis.unit, text=diagnosis.input_noun) for words in VIEWS[name])
    return words, meaning


def _head_tables(diagnosis: Diagnosis, name: str) -> list[HeatTable]:
    """Tables of one number by layer and head, one for each length."""
    if name == "needle" and diagnosis.needle is None:
        return []
    words, meaning = _words(diagnosis, name)
    tables = []
    for row in diagnosis.lengths:
        values = _values(row, name)
        known = values.nan_to_num(0.0)
        shares = (known / known.max().clamp(min=1e-9)).clamp(min=0).sqrt() if name in SCALED else known
        texts = [[_cell(value, name) for value in layer] for layer in values.tolist()]
        titles = [[f"layer {layer}, head {head}: {text}" for head, text in enumerate(cells)] for layer, cells in enumerate(texts)]
        title, heads = f"{words} of every head at {diagnosis.in_words(row.length)}", list(map(str, range(values.shape[1])))
        tables.append(HeatTable(f"{name} {row.length}", title, "head", heads, shares.tolist(), texts, titles, meaning))
    return tables


def _distance_tables(diagnosis: Diagnosis) -> list[HeatTable]:
    """Tables of the attention by layer and distance, one for each length."""
    from .charts import thousands

    tables = []
    for row in diagnosis.lengths:
        values = [layer.distance.mean(0).tolist() for layer in row.layers]
        ranges = [_distances(diagnosis, low, high) for low, high in row.bins]
        tables.append(
            HeatTable(
                str(row.length),
                f"Mass by distance at {diagnosis.in_words(row.length)}",
                f"distance in {diagnosis.unit}, from",
                columns=[thousands(low) for low, _ in row.bins],
                shares=[[math.sqrt(min(1.0, 2 * share)) for share in shares] for shares in values],
                texts=[[f"{100 * share:.0f}" for share in shares] for shares in values],
                titles=[
                    [f"layer {layer}: {percent(share)} of the attention at {where}" for share, where in zip(shares, ranges, strict=True)]
                    for layer, shares in enumerate(values)
                ],
                meaning=_in_time(diagnosis, [low for low, _ in row.bins if low]),
            )
        )
    return tables


def _distances(diagnosis: Diagnosis, low: int, high: int) -> str:
    """A bin of distances as text; for a sound, also in seconds."""
    distances = f"distance {low:,}" if low == high else f"distances {low:,} to {high:,}"
    if diagnosis.frame_seconds is None:
        return distances
    return f"{distances} ({in_seconds(low * diagnosis.frame_seconds)} to {in_seconds(high * diagnosis.frame_seconds)})"


def _in_time(diagnosis: Diagnosis, frames: Sequence[int]) -> str:
    """The durations of distances in a sound, as a sentence; empty for a text."""
    if diagnosis.frame_seconds is None:
        return ""
    from .charts import thousands

    durations = [f"{thousands(count)} = {in_seconds(count * diagnosis.frame_seconds)}" for count in frames]
    return f"In time: {', '.join(durations)}."


def _layer_table(diagnosis: Diagnosis, rows: Mapping[int, CandidateRow]) -> HeatTable:
    """Table of the mass kept by layer, for the candidates of the front. Columns are named by rank in the table of all candidates."""
    front = diagnosis.front()
    shares_kept = diagnosis.judged.captured().nanmean(1)[:, front].tolist()
    titles = [
        [f"layer {layer}: {diagnosis.candidates[number]} keeps {percent(share)}" for number, share in zip(front, shares, strict=True)]
        for layer, shares in enumerate(shares_kept)
    ]
    texts = [[f"{100 * share:.0f}" for share in shares] for shares in shares_kept]
    names = [str(rows[number].place) for number in front]
    return HeatTable(
        "", "Percent kept in each layer, by number", "percent kept in each layer, by number", names, shares_kept, texts, titles
    )


def _values(diagnosis: LengthDiagnosis, name: str) -> Tensor:
    """Values ``(layers, H)`` of a number in :data:`VIEWS`."""
    return diagnosis.needle() if name == "needle" else diagnosis.number(name)


def _cell(value: float, name: str) -> str:
    from .charts import thousands

    if math.isnan(value):
        return "–"
    if name == "effective_tokens":
        return thousands(value) if value >= 9.95 else f"{value:.1f}"
    return percent(value).replace(" %", "%")
