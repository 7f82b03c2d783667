"""A measured number as a model card shows it, and as the Hub's metadata stores it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from huggingface_hub import EvalResult

from ..errors import LongAttentionError


@dataclasses.dataclass(frozen=True)
class MeasuredResult:
    """One number that a script measured.

    Attributes:
        dataset: readable name, for example "lookup, documents of 1,025 to 2,048 tokens".
        metric: readable name, for example "exact match".
        value: finite; in ``unit``.
        unit: "%", "s", "nats" or "" for a plain number.
        task: the Hub's task name, for example "question-answering".
        dataset_type: identifier in the metadata; made from ``dataset`` when empty.
        metric_type: identifier in the metadata; made from ``metric`` when empty.
        system: what was measured, when the table compares several; only rows without one go into the metadata.
        n: examples; standard_error: in ``unit``; split: of the dataset; note: a few words.
    """

    dataset: str
    metric: str
    value: float
    unit: str = ""
    task: str = "question-answering"
    dataset_type: str = ""
    metric_type: str = ""
    system: str = ""
    n: int | None = None
    standard_error: float | None = None
    split: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not (isinstance(self.value, int | float) and math.isfinite(self.value)):
            raise LongAttentionError(
                f"The result {self.metric!r} on {self.dataset!r} is {self.value!r}, but a card states finite numbers only."
            )

    @classmethod
    def of(cls, row: MeasuredResult | dict[str, Any]) -> MeasuredResult:
        """The row itself, or one made from a dict of the attributes above."""
        if isinstance(row, MeasuredResult):
            return row
        try:
            return cls(**row)
        except TypeError as error:
            known = ", ".join(field.name for field in dataclasses.fields(cls))
            raise LongAttentionError(
                f"A result row has the fields {sorted(row)}, but takes {known} (the first three are needed)."
            ) from error

    @property
    def shown(self) -> str:
        """The value with its unit and standard error."""
        number = f"{self.value:,.3g}" if abs(self.value) < 100 else f"{self.value:,.0f}"
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2g}"
        return f"{number}{error}{' ' * bool(self.unit)}{self.unit}"

    def to_metadata(self) -> EvalResult:
        """The entry of the card's ``model-index``."""
        return EvalResult(
            task_type=self.task,
            dataset_type=self.dataset_type or _slug(self.dataset),
            dataset_name=self.dataset,
            dataset_split=self.split,
            metric_type=self.metric_type or _slug(self.metric),
            metric_name=self.metric,
            metric_value=self.value,
        )


def _slug(text: str) -> str:
    words = "".join(character if character.isalnum() else " " for character in text.lower()).split()
    return "_".join(words)
