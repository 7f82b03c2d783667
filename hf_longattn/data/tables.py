"""Files, folders and the Hub as datasets of explicit types: nothing is guessed.

Cells of CSV and TSV are texts as they stand. Values of JSON keep their types, also where a column has several. Features that Parquet, a
folder of ``datasets`` or the Hub give are kept.
"""

from __future__ import annotations

import csv
import glob
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from datasets import (
    Dataset,
    DatasetDict,
    DownloadManager,
    Features,
    Json,
    Value,
    get_dataset_config_names,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from hf_longattn import __version__
from hf_longattn.data.sources import DataError
from hf_longattn.errors import LongAttentionError, encoding_sentence, in_a_line, nearest
from hf_longattn.files import AUDIO_SUFFIXES

UTF_8 = "utf-8-sig"
"""How text files are read: Excel and Windows' editors write a byte-order mark first."""
FORMATS = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Endings of files that are read. All but Parquet may be compressed by gzip, with .gz after the ending."""
CONLL = (".conll", ".iob", ".bio", ".iob2", ".conllu")
"""Endings of files of words with tags, one word in a line."""
SUFFIXES = {"text": (".txt", ".md", ".rst", ".py"), "image": tuple(ImageFolder.EXTENSIONS), "audio": AUDIO_SUFFIXES}
"""Kind of a folder's files -> endings of their names."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Tables of a folder of images or audio files, as ``datasets`` reads an ``imagefolder`` or ``audiofolder``."""
CELL = {"bytes": Value("binary"), "path": Value("string")}
"""A file in a row, as ``datasets.Image`` and ``datasets.Audio`` store it."""
SPACE = re.compile(r"\s*")


def format_of(source: str) -> str:
    """The ending of a file's name in small letters, without a .gz after it."""
    path = Path(source.lower())
    return path.suffix if path.suffix != ".gz" or path.stem.endswith(".parquet") else Path(path.stem).suffix


def check_exists(source: str) -> None:
    """Raise :class:`DataError` for a source with the name of a file that is not there."""
    if source.lower().endswith((*FORMATS, *CONLL, ".gz", ".zip")) and not Path(source).exists():
        raise DataError(f"Data file {source!r} does not exist; correct its name.")


def saved_by_datasets(path: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return (path / "state.json").exists() or (path / "dataset_dict.json").exists()


def read_table(
    source: str, split: str | None = "train", *, kind: str = "text", flat: Callable[[Any], Iterable[Any]] | None = None
) -> Dataset:
    """Read one source with all its columns.

    Args:
        source: a .txt, .json, .jsonl, .csv or .tsv file (also .gz), a .parquet file, a folder written by ``datasets``, a folder of files of
            a ``kind``, or the name of a dataset on the Hub (``NAME:SUBSET`` if it has subsets).
        split: which split, if the source has several; ``None`` = the only one.
        kind: of a folder's files, see :data:`SUFFIXES`.
        flat: gives the rows of a value of JSON; default: the value is a row.

    Raises:
        DataError: missing or unreadable file, empty folder, unknown split.
    """
    path = Path(source)
    check_exists(source)
    if path.is_dir() and saved_by_datasets(path):
        try:
            data = load_from_disk(source)
        except Exception as error:
            reason = f"{type(error).__name__}: {in_a_line(error)}"
            raise DataError(f"The folder {source!r} is damaged; write it again with save_to_disk ({reason}).") from error
    elif path.is_dir():
        data = _read_folder(path, kind)
    elif path.exists():
        data = _read_file(source, flat)
    else:
        data = read_hub(source)
    if isinstance(data, DatasetDict):
        split = next(iter(data)) if split is None and len(data) == 1 else split
        if split not in data:
            raise DataError(f"{source} has the splits {', '.join(data)}, not {split!r}.{nearest(str(split), data)}")
        data = data[split]
    if not len(data):
        raise DataError(f"{source} has no rows; give other data.")
    return data


def files_of(path: Path, kind: str) -> list[Path]:
    """The files of a kind in a folder and its sub-folders, sorted by name; or the file itself.

    Raises:
        DataError: there is none, or a link to nothing.
    """
    endings = f"{'audio file' if kind == 'audio' else kind}s ({', '.join(SUFFIXES[kind][:4])} …)"
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{str(path)!r} does not exist; give a file, or a folder of {endings}.")
    paths = (file for file in sorted(path.rglob("*"), key=str) if file.suffix.lower() in SUFFIXES[kind] and file.name[0] != ".")
    files = [file for file in paths if not file.is_dir()]
    if broken := next((file for file in files if not file.is_file()), None):
        raise DataError(f"{str(broken)!r} is a link to nothing, or no regular file; remove it.")
    if not files:
        raise DataError(f"The folder {str(path)!r} holds no {endings}; give one that does.")
    return files


def located(source: str, split: str, kind: str) -> str:
    """A source; of a folder of images or audio files the folder of the split, and its table of metadata where there is one."""
    path = Path(source)
    if kind == "text" or not path.is_dir() or saved_by_datasets(path):
        return source
    of_split = path / split
    has_rows = of_split.is_dir() and any(child.is_dir() or child.suffix == ".txt" or child.name in METADATA for child in of_split.iterdir())
    roots = [of_split, path] if has_rows else [path]
    return str(next((root / name for root in roots for name in METADATA if (root / name).is_file()), roots[0]))


def _read_folder(root: Path, kind: str) -> Dataset:
    """The files of a folder, with their sub-folders as labels, and the .txt file beside each audio file as its text."""
    files = files_of(root, kind)
    labels = [file.relative_to(root).parts[0] if file.parent != root else None for file in files]
    columns: dict[str, Any] = {"label": labels} if any(labels) else {}
    if kind == "text":
        features = dict.fromkeys(("text", *columns), Value("string"))
        return _generated(_texts, [*map(str, files)], features, labels=tuple(labels) if columns else None)
    columns[kind] = [{"path": str(file), "bytes": None} for file in files]
    transcripts = [file.with_suffix(".txt") if kind == "audio" else None for file in files]
    if any(text and text.is_file() for text in transcripts):
        columns["text"] = [next(_texts([str(text)]))["text"] if text and text.is_file() else None for text in transcripts]
    return Dataset.from_dict(columns, features=Features({name: CELL if name == kind else Value("string") for name in columns}))


def _read_file(source: str, flat: Callable[[Any], Iterable[Any]] | None) -> Dataset:
    path, ending = Path(source), format_of(source)
    if not path.is_file():
        raise DataError(f"{source!r} is a pipe or a device, not a regular file; write its content into a file, and give that.")
    if ending not in FORMATS:
        endings = f"{', '.join(FORMATS)} (all but .parquet also as .gz), {', '.join(CONLL)} (words with tags)"
        raise DataError(f"{source!r} is of no format that is read: {endings}; unpack an archive, and write a table as one of these.")
    if not path.stat().st_size:
        raise DataError(f"Data file {source!r} is empty; give one with rows.")
    if ending == ".txt":
        return _generated(_texts, [source], {"text": Value("string")})
    if ending == ".parquet":
        try:
            return Dataset.from_parquet(glob.escape(source))
        except Exception as error:
            reason = in_a_line(error.__cause__ or error)
            raise DataError(f"The file {source!r} cannot be read ({type(error.__cause__ or error).__name__}: {reason}).") from error
    return _read_rows([source], ending, "\t" if ending == ".tsv" else ",", flat)


def _read_rows(files: Sequence[str], ending: str, separator: str, flat: Callable[[Any], Iterable[Any]] | None = None) -> Dataset:
    """The rows of files of CSV or JSON."""
    if ending.startswith(".json"):
        names = dict.fromkeys(name for row in _json_rows(files, flat) for name in row)
        if not names:
            raise DataError(f"{files[0]} has no rows; give other data.")
        return _generated(_json_rows, files, dict.fromkeys(names, Json()), flat=flat)
    with _opened(files[0], newline="") as text:
        header = next(filter(None, csv.reader(text, delimiter=separator)), [])
    if not header:
        raise DataError(f"{files[0]} has no rows; give other data.")
    if twice := [name for name, count in Counter(header).items() if name and count > 1]:
        raise DataError(f"The header of {files[0]!r} names the column {twice[0]!r} more than once; give each column another name.")
    return _generated(_csv_rows, files, dict.fromkeys(filter(None, header), Value("string")), separator=separator)


def _generated(rows: Callable[..., Iterator[dict[str, Any]]], files: Sequence[str], features: dict[str, Any], **options: Any) -> Dataset:
    """The dataset of generated rows, which ``datasets`` keeps until a file or this package changes."""
    stamp = (__version__, *((status.st_mtime_ns, status.st_size) for status in (Path(file).stat() for file in files)))
    try:
        return Dataset.from_generator(rows, features=Features(features), gen_kwargs={"files": tuple(files), "stamp": stamp, **options})
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None
    except ValueError as error:  # datasets reads no split without rows
        raise DataError(f"{files[0]} has no rows; give other data.") from error


@contextmanager
def _opened(file: str, newline: str | None = None) -> Iterator[TextIO]:
    """A text file, perhaps compressed, whose errors name it."""
    opener: Any = gzip.open if file.lower().endswith(".gz") else open
    with opener(file, "rt", encoding=UTF_8, newline=newline) as text:
        try:
            yield text
        except UnicodeDecodeError as error:
            raise DataError(encoding_sentence(file, error)) from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{file!r} is not a whole .gz file ({error}); download it again.") from error
        except RecursionError as error:
            raise DataError(f"{file!r} cannot be read: its JSON is nested too deeply; give rows of texts and numbers.") from error


def _texts(files: Sequence[str], labels: Sequence[str | None] | None = None, stamp: object = None) -> Iterator[dict[str, Any]]:
    """One document of each file."""
    for number, file in enumerate(files):
        with _opened(file) as text:
            yield {"text": text.read(), **({} if labels is None else {"label": labels[number]})}


def _csv_rows(files: Sequence[str], separator: str, stamp: object = None) -> Iterator[dict[str, Any]]:
    """The rows of CSV files, with every cell as it stands."""
    csv.field_size_limit(2**31 - 1)
    for file in files:
        quotes = 'write a cell with quotation marks in double quotes, and the marks in it twice ("").'
        with _opened(file, newline="") as text:
            reader = csv.reader(text, delimiter=separator, strict=True)
            number, header = 0, None
            try:
                for cells in reader:
                    if header is None or not cells:  # blank lines are no rows
                        header = header or cells or None
                        continue
                    number += 1
                    if len(cells) > len(header):
                        raise DataError(
                            f"Row {number} of {file!r} has more cells than columns; put texts with separators into double quotes."
                        )
                    if separator == "\t" and any("\t" in cell and "\n" in cell for cell in cells):
                        raise DataError(f"Row {number} of {file!r} has a cell that runs over tabs and lines to a quotation mark; {quotes}")
                    row = zip(header, [*cells, *[""] * (len(header) - len(cells))], strict=True)
                    yield {name: cell for name, cell in row if name}
            except csv.Error as error:
                where = f"Row {number + 1}" if header else "The header"
                raise DataError(
                    f"{where} of {file!r} has a quotation mark that is not closed or not doubled ({error}); {quotes}"
                ) from error


def _json_rows(files: Sequence[str], flat: Callable[[Any], Iterable[Any]] | None, stamp: object = None) -> Iterator[dict[str, Any]]:
    """The rows of files of JSON, with every value as JSON."""
    for file in files:
        with _opened(file) as text:
            for number, value in enumerate(_json_values(text, file), 1):
                try:
                    for row in [value] if flat is None else flat(value):
                        if not isinstance(row, (dict, str)):
                            raise ValueError(f"it holds {row!r:.40}, which is no row; write rows as objects: {{'text': …}}")
                        cells = {"text": row} if isinstance(row, str) else row
                        values = {name: None if cell is None else json.dumps(cell, ensure_ascii=False) for name, cell in cells.items()}
                        "".join(filter(None, (*values, *values.values()))).encode()
                        yield values
                except UnicodeEncodeError as error:
                    raise DataError(f"Row {number} of {file!r} has half of a character ({error}); correct its \\u escapes.") from error
                except ValueError as error:
                    raise DataError(f"Row {number} of {file!r} cannot be read: {error}.") from error


def _json_values(text: TextIO, file: str) -> Iterator[Any]:
    """The values of JSON, one after another; those of a list singly. Every line is a value, or the whole file is."""
    # a number that a 64-bit integer cannot hold stays a text, as do NaN and Infinity
    integer = {"parse_int": lambda digits: int(digits) if len(digits) <= 20 and abs(int(digits)) < 2**63 else digits, "parse_constant": str}
    decoder, is_first = json.JSONDecoder(**integer), True

    def values(line: str) -> list[Any]:
        parsed, at = list[Any](), 0
        while (at := SPACE.match(line, at).end()) < len(line):  # type: ignore[union-attr]
            value, at = decoder.raw_decode(line, at)
            parsed += value if isinstance(value, list) else [value]
        return parsed

    for number, line in enumerate(text, 1):
        try:
            try:
                parsed = values(line.rstrip())
            except json.JSONDecodeError:
                if not is_first:
                    raise
                parsed = values((line + text.read()).rstrip())
        except json.JSONDecodeError as error:
            where = f"Line {number + error.lineno - 1:,} of {file!r}"
            raise DataError(f"{where} is not valid JSON: {error.msg} at character {error.colno}.") from error
        is_first = is_first and not line.strip()
        yield from parsed


def read_hub(source: str) -> DatasetDict:
    """The splits of a dataset on the Hub, with a subset if there are several: ``hotpotqa/hotpot_qa:distractor``."""
    name, _, subset = source.partition(":")
    try:
        builder = load_dataset_builder(name, subset or None)
        if builder.name in ("csv", "json") and builder.info.features is None:  # datasets would guess the types, for each part anew
            manager, separator = DownloadManager(), getattr(builder.config, "sep", ",")
            files = {split: manager.download([*map(str, paths)]) for split, paths in builder.config.data_files.items()}
            return DatasetDict({split: _read_rows(paths, f".{builder.name}", separator) for split, paths in files.items()})
        options = {"keep_default_na": False, "na_values": [""]} if builder.name == "csv" else {}  # "None" is a text
        return load_dataset(name, subset or None, **options)
    except LongAttentionError:
        raise
    except Exception as error:
        subsets: list[str] = []
        with suppress(Exception):  # the earlier error is reported
            subsets = list(get_dataset_config_names(name))
        if subsets and (subset not in subsets if subset else len(subsets) > 1):
            advice = f", not {subset!r}.{nearest(subset, subsets)}" if subset else f"; name one, for example {name}:{subsets[0]}."
            raise DataError(f"{name} has the subsets {', '.join(subsets)}{advice}") from error
        cause = error.__cause__ or error
        raise DataError(
            f"{source!r} cannot be read: it is neither a {', '.join(FORMATS)} file nor a folder, and loading it from the Hub failed "
            f"({type(cause).__name__}: {in_a_line(cause)})."
        ) from error
