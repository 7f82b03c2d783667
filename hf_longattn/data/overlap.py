"""Rows that are trained on and scored, too, such as those of a file that is both training and validation data."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset

LABELS_OF_ROWS = ("id", "name", "title")
"""Columns that name a row and do not say what it contains."""
FIRST_BYTES = 4096
"""Bytes of an image or audio file that are compared, besides its size."""


def trained_rows(train: Dataset, scored: Dataset) -> int:
    """The number of ``scored`` rows whose content is also in ``train``, whatever their files and ids are."""
    columns = [name for name in scored.column_names if name in train.column_names and name not in LABELS_OF_ROWS]
    if not columns or not len(train):
        return 0
    contents = list(_contents(scored, columns))
    trained = set(contents).intersection(_contents(train, columns))
    return sum(content in trained for content in contents)


def _contents(data: Dataset, columns: list[str]) -> Iterator[int]:
    """A hash of each row."""
    for batch in data.select_columns(columns).with_format("arrow").iter(100):
        yield from (hash(_content(row)) for row in batch.to_pylist())


def _content(value: Any) -> Hashable:
    if isinstance(value, list):
        return tuple(map(_content, value))
    if not isinstance(value, dict):
        return value
    if set(value) != {"bytes", "path"}:
        return tuple((name, _content(part)) for name, part in value.items())
    if value["bytes"] is not None:  # a file in the table
        return len(value["bytes"]), value["bytes"][:FIRST_BYTES]
    if not Path(value["path"]).is_file():
        return str(value["path"])
    with open(value["path"], "rb") as file:
        return Path(value["path"]).stat().st_size, file.read(FIRST_BYTES)
