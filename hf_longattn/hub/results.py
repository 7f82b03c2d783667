"""Measured results, for a card's table and for its metadata on the Hub."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult

from ..errors import LongAttentionError
from ..reports import markdown_table


@dataclasses.dataclass(frozen=True)
class MeasuredResult:
    """One measured number.

    Attributes:
        dataset: readable name, for example "lookup, documents of 1,025 to 2,048 tokens".
        metric: readable name, for example "exact match".
        value: finite; in ``unit``.
        unit: "%", "s", "nats", or "" for a plain number.
        task: the Hub's task name, for example "question-answering"; ``None``: the model's task.
        dataset_type: identifier in the metadata; made from ``dataset`` when empty.
        metric_type: identifier in the metadata; made from ``metric`` when empty.
        system: name of the measured system, if a table compares several. Results with a system do not go into the metadata.
        n: number of examples. standard_error: in ``unit``. split: of the dataset. note: a few words.
    """

    dataset: str
    metric: str
    value: float
    unit: str = ""
    task: str | None = None
    dataset_type: str = ""
    metric_type: str = ""
    system: str = ""
    n: int | None = None
    standard_error: float | None = None
    split: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not (isinstance(self.value, int | float) and math.isfinite(self.value)):
            raise LongAttentionError(f"The result {self.metric!r} on {self.dataset!r} is {self.value!r}, but must be a finite number.")

    @classmethod
    def of(cls, row: MeasuredResult | dict[str, Any]) -> MeasuredResult:
        """``row`` itself, or a MeasuredResult made from a dict of its attributes."""
        if isinstance(row, MeasuredResult):
            return row
        try:
            return cls(**row)
        except TypeError as error:
            known = ", ".join(field.name for field in dataclasses.fields(cls))
            raise LongAttentionError(
                f"A result row has the fields {sorted(row)}, but takes {known} (the first three are required)."
            ) from error

    def to_metadata(self, task: str | None) -> EvalResult:
        """The entry of the card's ``model-index``. ``task`` is the model's, for a result without one."""
        dataset, metric = ("_".join(re.findall(r"[^\W_]+", text.lower())) for text in (self.dataset, self.metric))
        return EvalResult(
            task_type=self.task or task or "other",
            dataset_type=self.dataset_type or dataset,
            dataset_name=self.dataset,
            dataset_split=self.split,
            metric_type=self.metric_type or metric,
            metric_name=self.metric,
            metric_value=self.value,
        )


def results_table(rows: Sequence[MeasuredResult]) -> str:
    """The results as a table in Markdown. Empty columns are left out."""
    columns: dict[str, list[str]] = {name: [] for name in ("system", "dataset", "metric", "value", "n", "note")}
    for row in rows:
        number = f"{row.value:,.3g}" if abs(row.value) < 100 else f"{row.value:,.0f}"
        error = "" if row.standard_error is None else f" ± {row.standard_error:.2g}"
        columns["system"].append(row.system or "this model")
        columns["dataset"].append(row.dataset)
        columns["metric"].append(row.metric)
        columns["value"].append(f"{number}{error}{' ' * bool(row.unit)}{row.unit}")
        columns["n"].append("" if row.n is None else f"{row.n:,}")
        columns["note"].append(row.note)
    if not any(row.system for row in rows):
        del columns["system"]
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    return markdown_table([*filled], zip(*filled.values(), strict=True)) if rows else ""
