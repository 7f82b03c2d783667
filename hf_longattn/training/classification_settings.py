"""The settings of a document classification; the command line and recipes are made from them."""

# ruff: noqa: RUF009 (`setting` makes a field)
from __future__ import annotations

from dataclasses import dataclass

from hf_longattn.errors import OptionError
from hf_longattn.training.settings import RunSettings, setting


@dataclass
class ClassificationSettings(RunSettings):
    """Which documents to sort into which classes, and for how long to learn it."""

    data: list[str] = setting(
        [], "One or several of: a .csv, .tsv, .jsonl or .parquet file, a folder with a sub-folder of text files for every label, a folder "
        "written by datasets, the name of a dataset on the Hub."
    )  # fmt: skip
    text_column: str = setting("text", "The column that holds the text.")
    label_column: str = setting("label", "The column that holds the label: a name or a whole number.")
    split: str = setting("train", "Split to train on, where the data have several.")
    validation: str = setting("", "Labelled data to measure on, before and after; default: a tenth of --data, chosen by --seed.")
    validation_split: str = setting("validation", "Split of --validation, where that has several.")
    max_documents: int = setting(0, "Read so many documents at most; 0 = all.")
    max_length: int | None = setting(None, "Longest input in tokens, to which longer documents are cut; default: what the model takes.")
    batch_size: int = setting(2, "Documents per forward pass and process; those of similar length come together.")
    gradient_accumulation: int = setting(4, "Forward passes per optimiser step.", kw_only=True)
    epochs: float | None = setting(None, "Passes over the data; default: 3, where neither max_steps nor max_minutes is given.")
    max_steps: int = setting(0, "Optimiser steps, where no epochs are given.")
    max_minutes: float | None = setting(None, "Stop after so many minutes; the learning rate reaches zero by then.")
    learning_rate: float = setting(5e-5, "Highest learning rate; it rises over warmup_steps, then falls to zero.")

    def __post_init__(self) -> None:
        if self.epochs is None and not self.max_steps:
            self.epochs, self.max_steps = (3, 0) if self.max_minutes is None else (None, 1_000_000)

    def check(self) -> None:
        """Refuse settings that contradict one another."""
        super().check()
        if not self.data:
            raise OptionError("no data given; say --data with a labelled file, a folder or a dataset's name")
        if self.batch_size < 1:
            raise OptionError(f"batch_size must be at least 1, not {self.batch_size}")
        if self.max_length is not None and self.max_length < 2:
            raise OptionError(f"max_length must be at least 2 tokens, not {self.max_length}")
        if self.text_column == self.label_column:
            raise OptionError(f"text_column and label_column are both {self.text_column!r}; name two columns")
