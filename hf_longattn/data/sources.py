"""Read files, folders and the Hub as datasets with explicit types; no type is guessed.

Cells of CSV and TSV are unchanged texts. JSON values keep their types, even if a column has several types. Features of
Parquet files, ``datasets`` folders and the Hub are preserved.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any, TextIO

from datasets import (
    Dataset,
    DatasetDict,
    DownloadManager,
    Features,
    Json,
    Value,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from .. import __version__
from ..errors import LongAttentionError, encoding_sentence, in_a_line, nearest
from ..files import AUDIO_SUFFIXES

CONLL = (".conll", ".iob", ".bio", ".iob2")
"""Suffixes of CoNLL files, which have one word and its tag per line."""
DOCUMENT = ("-DOCSTART-", "#begin document", "#end document")
"""Prefixes of lines that separate documents in a CoNLL file."""
NUMBER = re.compile(r"\d+([-.]\d+)?")
"""Matches the first column of a CoNLL-U file: the number of a word, of a range (1-2) or of an empty node (1.1)."""
IOB_TAG = re.compile("O|[BIESLU]-.+")
"""Matches a named-entity tag, or O."""
FORMATS = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet", *CONLL)
"""Suffixes of supported files. All except Parquet may be compressed by gzip, with .gz after the suffix."""
SUFFIXES = {"text": (".txt", ".md", ".rst", ".py"), "image": tuple(ImageFolder.EXTENSIONS), "audio": AUDIO_SUFFIXES}
"""Modality -> suffixes of the files that are read in a folder of this modality."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Names of the table in a folder of images or audio files (``imagefolder`` and ``audiofolder`` of ``datasets``)."""
CELL = {"bytes": Value("binary"), "path": Value("string")}
"""The type of a cell with a file, as ``datasets.Image`` and ``datasets.Audio`` store it."""
SPACE = re.compile(r"\s*")


def path_and_content(source: Any) -> tuple[Any, str | io.BytesIO]:
    """The path of a file, and what a library can open: the path as a text, or the bytes of the file.

    ``source`` is a path, or a cell (:data:`CELL`), which may have no path.
    """
    if not isinstance(source, Mapping):
        return source, str(source)
    path, content = source.get("path"), source.get("bytes")
    return path, str(path) if content is None else io.BytesIO(content)


class DataError(LongAttentionError):
    """The data cannot be read, or do not fit the task."""


def check_exists(source: str) -> None:
    """Raise :class:`DataError` if a source has the suffix of a file, but does not exist."""
    if source.lower().endswith((*FORMATS, ".gz", ".zip")) and not Path(source).exists():
        raise DataError(f"Data file {source!r} does not exist; correct its name.")


def saved_by_datasets(path: Path) -> bool:
    """Whether a folder was written by ``save_to_disk`` of ``datasets``."""
    return (path / "state.json").exists() or (path / "dataset_dict.json").exists()


def read_table(
    source: str,
    split: str | None = "train",
    *,
    modality: str = "text",
    flat: Callable[[Any], Iterable[Any]] | None = None,
) -> Dataset:
    """Read one source with all its columns.

    Args:
        source: a file with a suffix in :data:`FORMATS` (also .gz, except .parquet), a folder written by ``datasets``,
            a folder of files of a ``modality``, or the name of a dataset on the Hub (``NAME:SUBSET`` if it has
            subsets).
        split: the split to read, if the source has several; ``None`` = the only one.
        modality: modality of the files in a folder, see :data:`SUFFIXES`.
        flat: function that returns the rows in a JSON value; default: each value is a row.

    Raises:
        DataError: the source does not exist, cannot be read, or has no rows.
    """
    path = Path(source)
    ending = path.suffix.lower()
    if ending == ".gz" and not source.lower().endswith(".parquet.gz"):
        ending = Path(source.lower().removesuffix(".gz")).suffix
    check_exists(source)

    # Rows, by the kind of the source
    if path.is_dir() and not saved_by_datasets(path):
        data = _read_folder(path, modality)
    elif path.exists() and not path.is_dir() and not path.is_file():
        raise DataError(
            f"{source!r} is a pipe or a device, not a regular file; write its content into a file, and give that."
        )
    elif path.is_file() and ending not in FORMATS:
        endings = f"{', '.join(FORMATS)} (all but .parquet also as .gz)"
        raise DataError(
            f"{source!r} is of no format that is read: {endings}; unpack an archive, and write a table as "
            "one of these."
        )
    elif path.is_file() and ending != ".parquet":
        data = _dataset([source], ending, flat=flat)
    else:
        data = _read_saved(source)

    # Split
    if isinstance(data, DatasetDict):
        if split is None and len(data) == 1:
            split = next(iter(data))
        if split not in data:
            raise DataError(f"{source} has the splits {', '.join(data)}, not {split!r}.{nearest(str(split), data)}")
        data = data[split]
    if not len(data):
        raise DataError(f"{source} has no rows; give other data.")
    return data


def _read_saved(source: str) -> Dataset | DatasetDict:
    """A Parquet file, a folder written by ``datasets``, or a dataset on the Hub: ``hotpotqa/hotpot_qa:distractor``."""
    name, _, subset = source.partition(":")
    try:
        if Path(source).is_dir():
            return load_from_disk(source)
        if Path(source).is_file():
            return Dataset.from_parquet(glob.escape(source))
        return read_hub(name, subset or None)
    except LongAttentionError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        problem = "is damaged; write it again"
        if not Path(source).exists():
            problem = (
                f"is neither a {', '.join(FORMATS)} file nor a folder, and loading it from the Hub failed; give NAME "
                "or NAME:SUBSET"
            )
        raise DataError(f"{source!r} {problem} ({type(cause).__name__}: {in_a_line(cause)}).") from error


def read_hub(name: str, subset: str | None = None) -> DatasetDict:
    """A dataset on the Hub. Cells of CSV are texts, as in local files, unless the dataset declares types."""
    builder = load_dataset_builder(name, subset)
    # Without declared types, ``datasets`` would guess the types of each file separately.
    if builder.name in ("csv", "json") and builder.info.features is None:
        manager = DownloadManager()
        separator = getattr(builder.config, "sep", ",")
        splits = {}
        for split, paths in builder.config.data_files.items():
            files = manager.download_and_extract([*map(str, paths)])
            splits[split] = _dataset(files, f".{builder.name}", separator=separator)
        return DatasetDict(splits)
    if builder.name == "csv":
        return load_dataset(name, subset, keep_default_na=False, na_values=[""])
    return load_dataset(name, subset)


def files_of(path: Path, modality: str) -> list[Path]:
    """The files of a modality in a folder and its sub-folders, sorted by name. If ``path`` is a file, this file."""
    noun = "audio files" if modality == "audio" else f"{modality}s"
    expected = f"{noun} ({', '.join(SUFFIXES[modality][:4])} …)"
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{str(path)!r} does not exist; give a file, or a folder of {expected}.")
    files = []
    for file in sorted(path.rglob("*"), key=str):
        if file.suffix.lower() not in SUFFIXES[modality] or file.name.startswith(".") or file.is_dir():
            continue
        if not file.is_file():
            raise DataError(f"{str(file)!r} is a link to nothing, or no regular file; remove it.")
        files.append(file)
    if not files:
        raise DataError(f"The folder {str(path)!r} holds no {expected}; give one that does.")
    return files


def located(source: str, split: str, modality: str) -> str:
    """The file or folder to read for a source.

    It is the source itself, except for a folder of images or audio files: then it is the metadata table of the folder,
    or the folder of the split, if they exist.
    """
    path = Path(source)
    if modality == "text" or not path.is_dir() or saved_by_datasets(path):
        return source
    root = path
    split_folder = path / split
    # a folder that is called like the split may also be a label; then it has only images or audio files
    if split_folder.is_dir() and any(
        child.is_dir() or child.suffix == ".txt" or child.name in METADATA for child in split_folder.iterdir()
    ):
        root = split_folder
    for folder in (root, path):
        for name in METADATA:
            if (folder / name).is_file():
                return str(folder / name)
    return str(root)


def _read_folder(root: Path, modality: str) -> Dataset:
    """The files of a folder, one per row.

    The names of sub-folders are labels. A .txt file with the name of an audio file is the text of the audio file.
    """
    files = files_of(root, modality)
    labels = [file.relative_to(root).parts[0] if file.parent != root else None for file in files]
    if modality == "text":
        data = _dataset([*map(str, files)], ".txt")
    else:
        cells = [{"path": str(file), "bytes": None} for file in files]
        data = Dataset.from_dict({modality: cells}, features=Features({modality: CELL}))
    if any(labels):
        data = data.add_column("label", labels)
    transcripts = [file.with_suffix(".txt") for file in files]
    if modality == "audio" and any(text.is_file() for text in transcripts):
        texts = [next(_rows([str(text)], ".txt"))["text"] if text.is_file() else None for text in transcripts]
        data = data.add_column("text", texts)
    return data


def _dataset(files: Sequence[str], ending: str, **options: Any) -> Dataset:
    """The rows of text files, CSV, JSON or CoNLL. ``datasets`` caches them until a file or this package changes.

    ``options`` are arguments of :func:`_rows`. They must not be lists, because ``datasets`` would divide lists into
    shards.
    """
    options |= {"files": tuple(files), "ending": ending}
    names = dict.fromkeys(name for row in _rows(**options) for name in row)
    if not names:
        raise DataError(f"{files[0]} has no rows; give other data.")
    feature: Any = Json() if ending.startswith((".json", *CONLL)) else Value("string")
    statuses = [Path(file).stat() for file in files]
    cache_key = (__version__, *((status.st_mtime_ns, status.st_size) for status in statuses))
    return Dataset.from_generator(
        _rows, features=Features(dict.fromkeys(names, feature)), gen_kwargs={**options, "cache_key": cache_key}
    )


def _rows(
    files: Sequence[str],
    ending: str,
    *,
    separator: str = "",
    flat: Callable[[Any], Iterable[Any]] | None = None,
    cache_key: object = None,
) -> Iterator[dict[str, Any]]:
    """The rows of files. Cells of text and CSV are unchanged texts, and cells of JSON and CoNLL are texts in JSON.

    ``cache_key`` is not read here. ``datasets`` hashes it with the other arguments, so that a changed file is read
    again.
    """
    for file in files:
        with _opened(file) as text:
            if ending == ".txt":
                yield {"text": text.read()}
            elif ending.startswith(".json"):
                yield from _json_rows(text, file, flat)
            elif ending in CONLL:
                yield from _conll_rows(text, file)
            else:
                yield from _csv_rows(text, file, separator or ("\t" if ending == ".tsv" else ","))


@contextmanager
def _opened(file: str) -> Iterator[TextIO]:
    """Open a text file, which may be compressed. Within the context, errors in its content become a DataError."""
    opener: Any = gzip.open if file.lower().endswith(".gz") else open
    with opener(file, "rt", encoding="utf-8-sig", newline="") as text:  # Excel writes a byte-order mark first
        try:
            yield text
        except UnicodeDecodeError as error:
            raise DataError(encoding_sentence(file, error)) from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{file!r} is not a whole .gz file ({error}); download it again.") from error
        except RecursionError as error:
            raise DataError(
                f"{file!r} cannot be read: its JSON is nested too deeply; give rows of texts and numbers."
            ) from error


def _csv_rows(text: TextIO, file: str, separator: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV file by the names in its header. Missing cells are "", and columns without a name left out."""
    csv.field_size_limit(2**31 - 1)
    quotes = 'write a cell with quotation marks in double quotes, and the marks in it twice ("").'
    rows = filter(None, csv.reader(text, delimiter=separator, strict=True))  # without blank lines
    header: list[str] = []
    number = 0
    try:
        header = next(rows, [])
        if len(header) == 1:
            for mark in ";\t|,":
                if mark != separator and mark in header[0]:
                    raise DataError(
                        f"The header of {file!r} is the one column {header[0]!r:.80}; separate its columns by "
                        f"{separator!r}, not by {mark!r}, and put cells with that character into double quotes."
                    )
        for name, count in Counter(header).items():
            if name and count > 1:
                raise DataError(
                    f"The header of {file!r} names the column {name!r} more than once; give each column another name."
                )
        for number, cells in enumerate(rows, 1):
            if len(cells) > len(header):
                raise DataError(
                    f"Row {number} of {file!r} has more cells than columns; put texts with separators into double "
                    "quotes."
                )
            if separator == "\t" and any("\t" in cell and "\n" in cell for cell in cells):
                raise DataError(
                    f"Row {number} of {file!r} has a cell that runs over tabs and lines to a quotation mark; {quotes}"
                )
            yield {name: cell for name, cell in zip_longest(header, cells, fillvalue="") if name}
    except csv.Error as error:
        where = f"Row {number + 1}" if header else "The header"
        raise DataError(
            f"{where} of {file!r} has a quotation mark that is not closed or not doubled ({error}); {quotes}"
        ) from error


def _conll_rows(text: TextIO, file: str) -> Iterator[dict[str, str]]:
    """The documents of a file with a word and its tag in each line.

    The first column is the word, and the last column its tag. Documents are separated by lines such as -DOCSTART-, or
    by blank lines if there are no such lines. At the start of a sentence, a line may be a comment.
    """
    lines = [line.removesuffix("\r") for line in text.read().split("\n")]
    has_document_lines = any(line.startswith(DOCUMENT) for line in lines)
    starts_sentence = True
    words: list[str] = []
    tags: list[str] = []
    lines.append(DOCUMENT[0])  # ends the last document
    for number, (line, columns, may_be_comment) in enumerate(_conll_columns(lines, file), start=1):
        if not columns or line.startswith(DOCUMENT):
            starts_sentence = True
            if words and (columns or not has_document_lines):
                yield {"tokens": json.dumps(words), "ner_tags": json.dumps(tags)}
                words, tags = [], []
            continue
        if starts_sentence and may_be_comment:
            continue
        starts_sentence = False
        word, tag = columns[0], columns[-1].strip(" ")
        if not word or not tag or len(columns) < 2 or "\r" in line:
            missing = "tag" if word else "word"
            raise DataError(
                f"Line {number} of {file!r} has no {missing}; a line is a word and its tag, separated by a tab or "
                "spaces, and ends with \\n."
            )
        words.append(word)
        tags.append(tag)


def _conll_columns(lines: Sequence[str], file: str) -> Iterator[tuple[str, list[str], bool]]:
    """For each line: the line, its columns (none if it is blank), and whether it may be a comment.

    Columns are separated by tabs, or by spaces in a file without tabs. All other white space belongs to the words. A
    line that begins with # may be a comment, unless it looks like a word: it has as many columns as some other word,
    and a tag in the last one.
    """
    word_lines = [line for line in lines if line.strip(" \t") and not line.startswith(("#", *DOCUMENT))]
    has_tabs = any("\t" in line for line in word_lines)

    def split(line: str) -> list[str]:
        if has_tabs:
            return line.split("\t")
        return [column for column in line.split(" ") if column]

    rows = list(map(split, word_lines))
    widths = set(map(len, rows))
    tags = {columns[-1] for columns in rows}
    if max(widths, default=0) > 2 and all(NUMBER.fullmatch(columns[0]) for columns in rows):
        raise DataError(
            f"{file!r} numbers its words, as CoNLL-U does; write a word and its tag in each line, without a number."
        )
    for line in lines:
        columns = split(line) if line.strip(" \t") else []
        looks_like_word = len(columns) in widths and (
            columns[-1] in tags or IOB_TAG.fullmatch(columns[-1]) is not None
        )
        yield line, columns, line.startswith("#") and not looks_like_word


def _json_rows(
    text: TextIO, file: str, flat: Callable[[Any], Iterable[Any]] | None
) -> Iterator[dict[str, str | None]]:
    """The rows of a JSON file, with every cell as a text in JSON. A string is a row with the column ``text``."""
    for number, value in enumerate(_json_values(text, file), 1):
        try:
            for row in [value] if flat is None else flat(value):
                if not isinstance(row, (dict, str)):
                    raise ValueError(f"it holds {row!r:.40}, which is not a row; write rows as objects: {{'text': …}}")
                cells = {"text": row} if isinstance(row, str) else row
                values = {
                    name: None if cell is None else json.dumps(cell, ensure_ascii=False)
                    for name, cell in cells.items()
                }
                "".join(filter(None, (*values, *values.values()))).encode()  # raises an error for half characters
                yield values
        except UnicodeEncodeError as error:
            raise DataError(
                f"Row {number} of {file!r} has half of a character ({error}); correct its \\u escapes."
            ) from error
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise DataError(f"Row {number} of {file!r} cannot be read: {in_a_line(error)}.") from error


def _json_values(text: TextIO, file: str) -> Iterator[Any]:
    """The values in a JSON file. Each line has values, or the whole file is one value.

    The items of a list are values of their own. A number that does not fit into 64 bits stays a text. NaN and Infinity
    stay texts as well.
    """
    decoder = json.JSONDecoder(
        parse_int=lambda digits: int(digits) if len(digits) <= 20 and abs(int(digits)) < 2**63 else digits,
        parse_constant=str,
    )

    def values(line: str) -> list[Any]:
        """The values in a text, which may follow each other without a separator."""
        parsed: list[Any] = []
        position = 0
        while (position := SPACE.match(line, position).end()) < len(line):  # type: ignore[union-attr]
            value, position = decoder.raw_decode(line, position)
            if isinstance(value, list):
                parsed += value
            else:
                parsed.append(value)
        return parsed

    is_first = True  # no value was read yet
    for number, line in enumerate(text, 1):
        try:
            try:
                parsed = values(line.rstrip())
            except json.JSONDecodeError:
                if not is_first:
                    raise
                parsed = values((line + text.read()).rstrip())  # the whole file
        except json.JSONDecodeError as error:
            where = f"Line {number + error.lineno - 1:,} of {file!r}"
            raise DataError(f"{where} is not valid JSON: {error.msg} at character {error.colno}.") from error
        is_first = is_first and not line.strip()
        yield from parsed
