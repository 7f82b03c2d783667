"""Data from wherever they come: files, folders, data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk

from hf_longattn.errors import LongAttentionError, nearest

FORMATS = {
    ".txt": ("text", {"sample_by": "document"}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".parquet": ("parquet", {}),
}
TEXT_FILES = ("*.txt", "*.md", "*.rst", "*.py")


class TextDataError(LongAttentionError):
    """Text that cannot be read."""


def read_source(source: str, split: str = "train") -> Dataset:
    """Read all columns of one source.

    Args:
        source: a .txt, .jsonl, .csv, .tsv or .parquet file, a folder of text files, a folder written by ``datasets``, or the
            name of a dataset on the Hub. A .txt file and every file of a folder is one document, in the column ``text``.
        split: which split, where the source has several.

    Raises:
        TextDataError: missing or unreadable file, empty folder, unknown split.
    """
    path = Path(source)
    if path.is_dir():
        return _choose(load_from_disk(source), split, source) if _saved(path) else _documents(path)
    if path.suffix in FORMATS:
        if not path.is_file():
            raise TextDataError(f"text file {source!r} does not exist")
        kind, options = FORMATS[path.suffix]
        return _read(source, f"the file {source!r} cannot be read", kind, data_files=source, split="train", **options)
    found = _read(source, f"cannot read {source!r}: it is neither a {', '.join(FORMATS)} file nor a folder, and the Hub failed")
    return _choose(found, split, source)


def is_plain_text(source: str) -> bool:
    """Whether a source holds documents and no columns beside them."""
    path = Path(source)
    return path.suffix == ".txt" or (path.is_dir() and not _saved(path))


def read_labelled_folder(path: Path) -> Dataset:
    """One document per file, labelled by the sub-folder that it lies in.

    Raises:
        TextDataError: a sub-folder without text files.
    """
    names = sorted(child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    rows: dict[str, list[Any]] = {"text": [], "label": []}
    for number, name in enumerate(names):
        texts = list(_documents(path / name)["text"])
        rows["text"] += texts
        rows["label"] += [number] * len(texts)
    return Dataset.from_dict(rows, Features({"text": Value("string"), "label": ClassLabel(names=names)}))


def check_column(data: Dataset, column: str, source: str, *, text: bool = False) -> str:
    """Return the name of a column that is there, and holds text where it must.

    Raises:
        TextDataError: it is not, or does not.
    """
    if column not in data.column_names:
        raise TextDataError(f"{source} has the columns {', '.join(data.column_names)}, not {column!r}.{nearest(column, data.column_names)}")
    kind = getattr(data.features[column], "dtype", "a list")
    if text and kind not in ("string", "large_string", "null"):
        raise TextDataError(f"the column {column!r} of {source} holds {kind}, not text; the columns are {', '.join(data.column_names)}")
    return column


def _saved(path: Path) -> bool:
    return (path / "state.json").exists() or (path / "dataset_dict.json").exists()


def _documents(path: Path) -> Dataset:
    files = sorted(str(file) for pattern in TEXT_FILES for file in path.rglob(pattern))
    if not files:
        raise TextDataError(f"the folder {str(path)!r} holds no text files ({', '.join(TEXT_FILES)})")
    return _read(str(path), f"the folder {str(path)!r} cannot be read", "text", data_files=files, sample_by="document", split="train")


def _read(source: str, failure: str, kind: str = "", **options: Any) -> Any:
    try:
        return load_dataset(kind or source, **options)
    except Exception as error:
        cause = error.__cause__ or error
        first = (str(cause).splitlines() or [""])[0]
        raise TextDataError(f"{failure} ({type(cause).__name__}: {first})") from error


def _choose(data: Any, split: str, source: str) -> Dataset:
    if not isinstance(data, DatasetDict):
        return data
    if split not in data:
        raise TextDataError(f"{source} has the splits {', '.join(data)}, not {split!r}.{nearest(split, data)}")
    return data[split]
