"""Rows of image or audio files, with or without a label. Only the paths are read here; ``images`` and ``audio`` read the files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value
from pyarrow.compute import struct_field

from hf_longattn.data.sources import STRINGS, DataError, check_column, label_folders, label_reader, read_source, saved_by_datasets

CELL = {"bytes": Value("binary"), "path": Value("string")}
"""A file in a row, as ``datasets.Image`` and ``datasets.Audio`` store it; the latter's own cells cannot be written without torchcodec."""


@dataclass(frozen=True)
class FileKind:
    """A kind of file.

    unit: "image", "audio file"; with an s for several.
    column: their column in the rows that are returned.
    feature: of a column with such files, ``datasets.Image(decode=False)`` or ``datasets.Audio(decode=False)``.
    suffixes: endings of the names of such files.
    option: names a column of the user's data on the command line.
    """

    unit: str
    column: str
    feature: Any
    suffixes: tuple[str, ...]
    option: str

    @property
    def labelled(self) -> Features:
        """The columns of :func:`load_labelled_files`."""
        return Features({self.column: CELL, "label": Value("string"), "name": Value("string")})

    def files(self, path: Path) -> list[Path]:
        """The files of this kind in a folder and its sub-folders, sorted by name; or the file itself.

        Raises:
            DataError: there is none.
        """
        if path.is_file():
            return [path]
        endings = f"({', '.join(self.suffixes[:4])} …)"
        if not path.is_dir():
            raise DataError(f"{str(path)!r} does not exist; give an {self.unit}, or a folder of {self.unit}s {endings}.")
        paths = (file for file in sorted(path.rglob("*")) if file.suffix.lower() in self.suffixes and not file.name.startswith("."))
        files = [file for file in paths if not file.is_dir()]
        if broken := next((file for file in files if not file.is_file()), None):
            raise DataError(f"{str(broken)!r} is a link to nothing, or no regular file; remove it.")
        if not files:
            raise DataError(f"The folder {str(path)!r} holds no {self.unit}s {endings}; give one that does.")
        return files


def load_labelled_files(kind: FileKind, source: str, *, split: str, column: str, label_column: str) -> Dataset:
    """Read the paths of files and the names of their labels, not the files themselves.

    Args:
        source: a folder with one sub-folder of files per label, or such a folder for each split (``photos/train/cat/1.jpg``), as
            ``datasets`` reads an ``imagefolder`` or ``audiofolder``; or a table, a folder written by ``datasets``, or a name on the Hub:
            see :func:`read_source`.
        split: which split, if the source has several.
        column: the column of files: of the kind's feature, of bytes, or of paths relative to the table.
        label_column: names, whole numbers or ``datasets.ClassLabel``.

    Returns:
        A dataset with the columns ``kind.column`` (path or bytes), ``label`` (text) and ``name``, the file's name in messages.

    Raises:
        DataError: the source cannot be read, a column is missing or does not hold such files, or a row has no label or no file.
    """
    path = Path(source)
    if path.is_dir() and not saved_by_datasets(path):
        of_split = path / split
        return _labelled_folder(kind, of_split if of_split.is_dir() and any(child.is_dir() for child in of_split.iterdir()) else path)
    data = read_source(source, split)
    check_column(data, column, source, kind.option)
    check_column(data, label_column, source, "--label-column")
    name = label_reader(data.features[label_column], label_column, source)
    labels = [name(value, row) for row, value in enumerate(data[label_column])]
    return file_rows(kind, data, column, source).add_column("label", labels).select_columns([kind.column, "label", "name"])


def _labelled_folder(kind: FileKind, root: Path) -> Dataset:
    """One row per file, labelled by its sub-folder."""
    files, labels = [], []
    for folder in label_folders(root, f"{kind.unit}s"):
        paths = kind.files(folder)
        files += [str(file) for file in paths]
        labels += [folder.name] * len(paths)
    cells = [{"path": file, "bytes": None} for file in files]
    return Dataset.from_dict({kind.column: cells, "label": labels, "name": files}, features=kind.labelled)


def file_rows(kind: FileKind, data: Dataset, column: str, source: str) -> Dataset:
    """The files of a column, undecoded, as ``kind.column``, and their names in messages as ``name``.

    Args:
        source: of the data; paths are relative to its folder.

    Raises:
        DataError: the column has another type, or a row has no file.
    """
    feature, held = data.features[column], getattr(data.features[column], "dtype", "a list")
    if held in STRINGS[:-1]:
        folder = Path(source).resolve().parent
        places = [None if not place else {"path": str(folder / place), "bytes": None} for place in data[column]]
        files = Dataset.from_dict({kind.column: places}, features=Features({kind.column: CELL}))
    elif isinstance(feature, type(kind.feature)) or held in ("binary", "large_binary"):
        files = data.select_columns([column]).rename_columns({} if column == kind.column else {column: kind.column})
        files = files.cast_column(kind.column, kind.feature).cast_column(kind.column, CELL)
    else:
        raise DataError(f"The column {column!r} of {source} holds {held}, not {kind.unit}s; name another with {kind.option}.")
    cells = files.with_format("arrow")[:][kind.column]
    names = []
    for row, (place, is_missing) in enumerate(zip(struct_field(cells, "path").to_pylist(), cells.is_null().to_pylist(), strict=True)):
        if is_missing:
            raise DataError(f"Row {row + 1} of {source} has no {kind.unit} in the column {column!r}; leave such rows out.")
        names.append(place if place and Path(place).is_absolute() else f"row {row + 1} of {source}")
    return files.add_column("name", names)
