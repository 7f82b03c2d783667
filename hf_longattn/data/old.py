"""Readers of tasks that have not moved to the new core yet; this file leaves with them."""

from __future__ import annotations

import contextlib
import glob
import gzip
import json
import logging
import math
import random
import re
import string
import warnings
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import pandas
import pyarrow
import pyarrow.compute
from datasets import (
    Audio,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    Json,
    List,
    Value,
    concatenate_datasets,
    get_dataset_config_names,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from pyarrow.compute import struct_field

from hf_longattn.data.images import read_image
from hf_longattn.data.sources import DataError, check_exists
from hf_longattn.data.words import TAGGED, read_conll
from hf_longattn.errors import LongAttentionError, OptionError, encoding_sentence, listed, nearest
from hf_longattn.files import AUDIO_SUFFIXES

WORDS = ("tokens", "words")
Changed = TypeVar("Changed")
UTF_8 = "utf-8-sig"
"""How text files are read: Excel and Windows' editors write a byte-order mark first."""
FORMATS = {
    ".txt": ("text", {"sample_by": "document", "encoding": UTF_8}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".parquet": ("parquet", {}),
}
"""Ending of a file -> how ``datasets`` reads it. All but Parquet may be compressed by gzip, with .gz after the ending."""
CONLL = (".conll", ".iob", ".bio", ".iob2", ".conllu")
"""Endings of files of words with tags, one word in a line."""
TEXT_FILES = (".txt", ".md", ".rst", ".py")
LARGEST_TEXT = 16_000_000
"""Maximum bytes of one document; five times War and Peace."""
STRINGS = ("string", "large_string", "string_view", "null")
"""Arrow's names of the types of texts, and of a column without values."""
SPACE, SHALLOW = re.compile(r"\s*"), re.compile(r"(list<\w+: ){0,3}\w+>*")
"""White space between the values of JSON, and the Arrow types of scalars and of lists in up to two lists."""
LINES = 100
"""Lines of JSON that are in memory at once. Untuned."""
TENTH = 10
"""One row in this many of every source is held out."""
LABELLED = Features({"text": Value("string"), "label": Value("string")})


def format_of(source: str) -> str:
    """The ending of a file's name in small letters, without a .gz after it."""
    path = Path(source.lower())
    return path.suffix if path.suffix != ".gz" or path.stem.endswith(".parquet") else Path(path.stem).suffix


def check_file(source: str, others: Sequence[str] = ()) -> str:
    """The ending of an existing file, see :func:`format_of`. The task reads ``others``, too.

    Raises:
        DataError: it is a pipe or a device, is empty, or has an ending of no format.
    """
    path, ending = Path(source), format_of(source)
    if not path.is_file():
        raise DataError(f"{source!r} is a pipe or a device, not a regular file; write its content into a file, and give that.")
    if ending not in FORMATS:
        endings = ", ".join((f"{', '.join(FORMATS)} (all but .parquet also as .gz)", *others))
        raise DataError(f"{source!r} is of no format that is read: {endings}; unpack an archive, and write a table as one of these.")
    if not path.stat().st_size:
        raise DataError(f"Data file {source!r} is empty; give one with rows.")
    return ending


def read_source(source: str, split: str | None = "train", others: Sequence[str] = ()) -> Dataset:
    """Read one source with all its columns.

    Cells of CSV and TSV are texts as they stand in the file; an empty cell is an empty text. Values of JSON keep their types. Features
    that Parquet or the Hub give are kept.

    Args:
        source: a .txt, .json, .jsonl, .csv or .tsv file (also .gz), a .parquet file, a folder of text files, a folder written by
            ``datasets``, or the name of a dataset on the Hub (``NAME:SUBSET`` if it has subsets). A .txt file, and every file of a folder,
            is one document, in the column ``text``.
        split: which split, if the source has several; ``None`` = the only one.
        others: endings that the caller reads itself, for the refusal of any other.

    Raises:
        DataError: missing or unreadable file, empty folder, unknown split.
    """
    path = Path(source)
    check_exists(source)
    if path.is_dir() and saved_by_datasets(path):
        try:
            data = load_from_disk(source)
        except Exception as error:
            first = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            raise DataError(f"The folder {source!r} is damaged; write it again with save_to_disk ({first}).") from error
    elif path.is_dir():
        data = _documents(path)
    elif path.exists():
        kind, options = FORMATS[check_file(source, others)]
        data = load_or_refuse(source, f"The file {source!r} cannot be read", kind, [source], **options)
    else:
        failure = f"{source!r} cannot be read: it is neither a {', '.join(FORMATS)} file nor a folder, and loading it from the Hub failed"
        data = load_or_refuse(source, failure)
    if isinstance(data, DatasetDict):
        split = next(iter(data)) if split is None and len(data) == 1 else split
        if split not in data:
            raise DataError(f"{source} has the splits {', '.join(data)}, not {split!r}.{nearest(str(split), data)}")
        data = data[split]
    return checked_texts(data, source)


class SampleLimits(Protocol):
    """Arguments with the maximum rows to train on and to evaluate on; ``None`` = all. ``only_scores``: nothing is trained.
    ``scored_rows``: set by :func:`limited`, the rows to evaluate on, ``n``, and how many of them are ``trained`` on, too."""

    max_train_samples: int | None
    max_eval_samples: int | None
    only_scores: ClassVar[bool]
    scored_rows: dict[str, int]


class LabelledSources(SampleLimits, Protocol):
    """Arguments that name labelled data: sources to train on and, if not empty, one to evaluate on."""

    data: list[str]
    split: str
    validation: str
    validation_split: str


def train_test_split(
    args: LabelledSources,
    read: Callable[[str, str], Dataset],
    seed: int,
    *,
    least: int = 2,
    unit: str = "",
    classes: str = "",
) -> tuple[Dataset, Dataset]:
    """Training rows, and evaluation rows: all of ``--validation``, or a tenth of every source. ``max_train_samples`` and
    ``max_eval_samples`` limit both. In an evaluation, both parts are all rows.

    Args:
        read: reads a split of a source.
        seed, unit, classes: choose the rows; see :func:`split_held_out`.
        least: rows without which nothing is held back.

    Raises:
        DataError: sources with different columns, or nothing to score.
        OptionError: too few rows to hold some back.
    """
    parts = [read(source, args.split) for source in args.data]
    if differing := next((place for place, part in enumerate(parts) if set(part.column_names) != set(parts[0].column_names)), 0):
        columns = [", ".join(part.column_names) for part in (parts[0], parts[differing])]
        raise DataError(
            f"{args.data[0]} has the columns {columns[0]}, but {args.data[differing]} has {columns[1]}; give data of one shape."
        )
    if args.only_scores:
        return all_scored(args, seed, concatenate_datasets(parts))
    if args.validation:
        return limited(args, seed, concatenate_datasets(parts), read(args.validation, args.validation_split))
    train, held_out = split_held_out(parts, seed, unit=unit, classes=classes)
    rows = len(train) + len(held_out)
    if not len(held_out) or rows < least:
        count = "is only one row" if rows == 1 else f"are {rows} rows" + (f" of one {unit}" if unit and rows >= least else "")
        raise OptionError(f"There {count} in {', '.join(args.data)}, too few to hold some back for evaluation; give --validation DATA.")
    return limited(args, seed, train, held_out)


def each_part(change: Callable[[Dataset], Changed], *parts: Dataset) -> list[Changed]:
    """``change(part)`` for each part. A part that is given twice is converted once."""
    changed = {part: change(part) for part in dict.fromkeys(parts)}
    return [changed[part] for part in parts]


def limited(args: SampleLimits, seed: int, train: Dataset, held_out: Dataset) -> tuple[Dataset, Dataset]:
    """At most as many training and evaluation rows as wanted, drawn by the seed. ``args`` note how many are both."""
    train, held_out = _drawn(train, args.max_train_samples, seed), _drawn(held_out, args.max_eval_samples, seed)
    args.scored_rows = {"n": len(held_out), "trained": trained_rows(train, held_out)}
    return train, held_out


def all_scored(args: SampleLimits, seed: int, data: Dataset) -> tuple[Dataset, Dataset]:
    """The two parts of an evaluation, which are the same rows.

    Raises:
        DataError: there are none.
    """
    if not len(data):
        raise DataError("The data have no rows to score; give other data.")
    scored = _drawn(data, args.max_eval_samples, seed)
    return scored, scored


def _drawn(data: Dataset, count: int | None, seed: int) -> Dataset:
    if count is None or count >= len(data):
        return data
    return data.select(sorted(random.Random(seed).sample(range(len(data)), count)))


def shuffled(parts: Sequence[Dataset], seed: int, limit: int = 0) -> Dataset:
    """The rows of all parts in an order that depends on the seed; the first ``limit``, 0 = all."""
    data = concatenate_datasets(parts)
    return data.select(_order(len(data), seed, limit))


def split_held_out(
    parts: Sequence[Dataset], seed: int, *, most: int | None = None, unit: str = "", classes: str = ""
) -> tuple[Dataset, Dataset]:
    """Divide data into rows to train on and rows to evaluate on: of every source a tenth, drawn by the seed.

    A source of two units or more gives at least one; if none has two, the last one drawn is held out.

    Args:
        parts: the rows of each source, with the same columns.
        most: units of a source that are held out at most; ``None`` = no limit.
        unit: rows with equal values in this column stay together, such as the documents of a question; "" = every row is a unit.
        classes: the values in this column have the same shares in both parts, as far as there are units; "" = no classes.
    """
    ends = list(accumulate(map(len, parts)))
    data = concatenate_datasets(parts)
    order = _order(len(data), seed)
    values = data[unit][:] if unit else range(len(data))
    units: dict[tuple[int, Any], list[int]] = {}
    for row in order:
        units.setdefault((bisect_right(ends, row), values[row]), []).append(row)
    labels = data[classes][:] if classes else [None] * len(data)
    class_of = {key: (key[0], labels[rows[0]]) for key, rows in units.items()}
    sizes, drawn_of_class, quantile = Counter(class_of.values()), Counter[Any](), {}
    for key, group in class_of.items():  # the lowest tenth of the quantiles has the shares of all
        quantile[key] = (drawn_of_class[group] + 0.5) / sizes[group]
        drawn_of_class[group] += 1
    of_sources = [sorted((key for key in units if key[0] == source), key=quantile.__getitem__) for source in range(len(parts))]
    drawn = [key for keys in of_sources if len(keys) > 1 for key in keys[: min(max(1, len(keys) // TENTH), most or len(keys))]]
    held_out = [row for key in drawn or list(units)[1:][-1:] for row in units[key]]
    chosen = set(held_out)
    return data.select([row for row in order if row not in chosen]), data.select(held_out)


def _order(count: int, seed: int, limit: int = 0) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order[: limit or None]


def is_plain_text(source: str) -> bool:
    """Whether a source holds documents without further columns."""
    path = Path(source)
    return format_of(source) == ".txt" or (path.is_dir() and not saved_by_datasets(path))


def check_column(data: Dataset, column: str, source: str, option: str, *, text: bool = False) -> str:
    """Return ``column`` if the data have it, holding text if it must; ``option`` is its flag."""
    if column not in data.column_names:
        names = ", ".join(data.column_names)
        separator = next((character for character in ";\t|" if character in names), None)
        if separator is not None and len(data.column_names) == 1:
            raise DataError(f"{source} has a single column, {names!r}; separate its columns by commas, not by {separator!r}.")
        close = nearest(column, data.column_names, least=0.6)  # "bboxes" is half of "tokens"
        raise DataError(f"{source} has the columns {names}, not {column!r}; name one with {option}.{close}")
    kind = _kind(data.features[column])
    if text and kind not in STRINGS:
        raise DataError(f"The column {column!r} of {source} holds {kind}, not text; the columns are {', '.join(data.column_names)}.")
    return column


def named_columns(data: Dataset, known: Mapping[str, Sequence[str]], named: Mapping[str, str], source: str) -> dict[str, str]:
    """Role -> column of the data.

    Args:
        known: role -> recognised names of columns. The first existing one is taken.
        named: the columns that the user named by ``--ROLE_column``; empty = none.

    Raises:
        DataError: a column that was named is missing.
    """
    chosen = {role: check_column(data, column, source, f"--{role}-column") for role, column in named.items() if column}
    by_name = {role: next((name for name in names if name in data.column_names), None) for role, names in known.items()}
    return {role: column for role, column in {**by_name, **chosen}.items() if column is not None}


def load_text(
    sources: list[str], *, split: str = "train", column: str = "text", template: Sequence[str] = (), limit: int = 0, seed: int = 0
) -> Dataset:
    """Read documents.

    Args:
        sources, split, column, template: see :func:`read_texts`.
        limit: maximum number of documents, chosen by ``seed``; 0 = all.
        seed: the order of the documents.

    Returns:
        A dataset with the column ``text``.

    Raises:
        DataError, OptionError: as :func:`read_texts`.
    """
    return shuffled(read_texts(sources, split=split, column=column, template=template), seed, limit)


def read_texts(sources: list[str], *, split: str = "train", column: str = "text", template: Sequence[str] = ()) -> list[Dataset]:
    """The documents of each source, in their order, without empty ones.

    Args:
        sources: see :func:`read_source`.
        split: which split, if a source has several.
        column: which column holds the text.
        template: format strings such as ``"{title}\\n{body}"``, in place of ``column``. Each row takes the first one whose columns all have
            a value.

    Returns:
        Datasets with the column ``text``.

    Raises:
        DataError: missing file, unknown split or column, or nothing to read.
        OptionError: a template that is not a format string, or names no column.
    """
    templates = [(text, template_columns(text)) for text in template]
    parts = [_load_text(source, split, column, templates).filter(_has_text) for source in sources]
    if not any(map(len, parts)):
        raise DataError(f"There is no text in {', '.join(sources)}; give another file or column.")
    return parts


def _has_text(row: dict[str, Any]) -> bool:
    return all((row[name] or "").strip() for name in ("text", "question") if name in row)


def load_labelled(
    source: str, *, split: str = "train", text_column: str = "text", label_column: str = "label", question_column: str = ""
) -> Dataset:
    """Read documents and the names of their labels.

    Args:
        source: a folder with one sub-folder of text files per label, or see :func:`read_source`.
        split: which split, if the source has several.
        text_column, label_column: names of columns; labels are names, whole numbers or ``datasets.ClassLabel``.
        question_column: a question or claim about each text; "" = none.

    Returns:
        A dataset with the columns ``text`` and ``label``, and ``question`` where there is one, all text; rows without text are left out.

    Raises:
        DataError: the source cannot be read, a column is missing, or a row has no label or an unknown one.
    """
    path = Path(source)
    if is_plain_text(source) and path.is_dir() and not question_column:
        return _labelled_folder(path).filter(_has_text)
    if is_plain_text(source):
        columns, folder = ("question, text and label", "") if question_column else ("text and label", ", or a folder with one per label")
        raise DataError(f"{source!r} holds text alone; give a table with columns for {columns}{folder}.")
    data = read_source(source, split)
    texts = {"text": text_column, **({"question": question_column} if question_column else {})}
    for role, column in texts.items():
        check_column(data, column, source, f"--{role}-column", text=True)
    check_column(data, label_column, source, "--label-column")
    name = label_reader(data.features[label_column], label_column, source)

    def convert(row: dict[str, Any], number: int) -> dict[str, Any]:
        return {**{role: row[column] for role, column in texts.items()}, "label": name(row[label_column], number)}

    features = Features(dict.fromkeys((*texts, "label"), Value("string")))
    return data.map(convert, with_indices=True, remove_columns=data.column_names, features=features).filter(_has_text)


def class_names(names: Sequence[str], known: Sequence[str], *, only_known: bool = False) -> list[str]:
    """The classes in the order of their numbers: the model's own if it knows all of ``names``, so that its head stays valid; else
    ``names``.

    Args:
        names: the labels of the data.
        known: the model's classes.
        only_known: refuse labels that the model does not know. If it numbers its classes (LABEL_0, LABEL_1 …), it knows whole numbers.

    Raises:
        DataError: the model does not know a label.
    """
    if set(names) <= set(known):
        return list(known)
    if not only_known:
        return list(names)
    numbers = list(map(str, range(len(known))))
    if list(known) != [f"LABEL_{number}" for number in numbers]:
        raise DataError(
            f"The model does not know the labels {listed(set(names) - set(known))} of the data; its classes are {listed(known)}, so write "
            "the labels like these."
        )
    if set(names) <= set(numbers):
        return numbers
    raise DataError(
        f"The model has no names for its {len(known)} classes, so the labels of the data must be numbers from 0, not "
        f"{listed(set(names) - set(numbers))}; write numbers, or the names into id2label of its config.json."
    )


def template_columns(template: str) -> list[str]:
    """The columns that a format string names.

    Raises:
        OptionError: the template is not a format string, or names no column.
    """
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise OptionError(f"The template {template!r} is not a format string ({error}); write {{{{ and }}}} for braces.") from error
    if not names or not all(name.isidentifier() for name in names):
        raise OptionError(f"The template {template!r} must name columns in braces, for example '{{title}}: {{text}}'.")
    return list(dict.fromkeys(names))


def _load_text(source: str, split: str, column: str, templates: Sequence[tuple[str, list[str]]] = ()) -> Dataset:
    data = read_source(source, split)
    if templates:
        for name in dict.fromkeys(name for _, names in templates for name in names):
            check_column(data, name, source, "--template")

        def written(row: dict[str, Any]) -> dict[str, str]:
            filled = (text for text, names in templates if all(str("" if row[name] is None else row[name]).strip() for name in names))
            template = next(filled, None)
            try:
                return {"text": "" if template is None else template.format_map(row)}
            except (ValueError, TypeError) as error:
                said = f"The template {template!r} does not suit {source} ({error})"
                raise DataError(f"{said}; leave out the format after a colon.") from error

        return data.map(written, remove_columns=data.column_names, features=Features({"text": Value("string")}))
    column = "text" if is_plain_text(source) else check_column(data, column, source, "--column", text=True)
    return data.select_columns([column]).rename_columns({} if column == "text" else {column: "text"})


def _labelled_folder(path: Path) -> Dataset:
    """One document per file, labelled by its sub-folder."""

    def label(name: str) -> Dataset:
        return _documents(path / name).map(lambda rows: {"label": [name] * len(rows["text"])}, batched=True).cast(LABELLED)

    return concatenate_datasets([label(folder.name) for folder in label_folders(path, "texts")])


def label_folders(path: Path, what: str) -> list[Path]:
    """The sub-folders of a folder. Each has a label's name and holds its ``what``, such as "images".

    Raises:
        DataError: there are none.
    """
    folders = [child for child in sorted(path.iterdir()) if child.is_dir() and not child.name.startswith(".")]
    if not folders:
        raise DataError(f"The folder {str(path)!r} has no sub-folders; every label needs one, with its {what} in it.")
    return folders


def as_number(value: Any) -> float | None:
    """The finite number that a value of JSON or a cell of a table holds, also as text; ``None`` for anything else."""
    try:
        number = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def label_reader(feature: Any, column: str, source: str, option: str = "--label-column") -> Callable[[Any, int], str]:
    """Return a function from a label and its row to the label's name.

    Raises:
        DataError: the column holds no classes.
    """
    kind, numbers = _kind(feature), isinstance(feature, ClassLabel)
    fractions = kind in ("float32", "float64")
    if not (numbers or fractions or kind in (*STRINGS[:-1], "bool") or kind.startswith(("int", "uint"))):
        raise _no_classes(kind, column, source, option)

    def name(value: Any, row: int) -> str:
        if numbers:
            if value is None or value < 0:
                raise DataError(f"{source} has rows without a label in the column {column!r}; leave them out.")
            return str(feature.names[value])
        if value is None or value == "" or value != value:
            raise DataError(f"Row {row + 1} of {source} has no label in the column {column!r}; leave such rows out.")
        if fractions and not float(value).is_integer():
            raise _no_classes(kind, column, source, option)
        if isinstance(value, bool):
            return str(value).lower()  # as JSON writes it
        return str(int(value) if fractions else value)

    return name


def _no_classes(kind: str, column: str, source: str, option: str) -> DataError:
    return DataError(
        f"The column {column!r} of {source} holds {kind}, but a class is a name or a whole number; name another with {option}."
    )


def _kind(feature: Any) -> str:
    """The type of a column in words, or Arrow's name of it."""
    if isinstance(feature, Json):
        return "values of different types"
    return getattr(feature, "dtype", "a list")


def saved_by_datasets(path: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return (path / "state.json").exists() or (path / "dataset_dict.json").exists()


def _documents(path: Path) -> Dataset:
    files = sorted((file for file in path.rglob("*") if file.suffix.lower() in TEXT_FILES and not file.is_dir()), key=str)
    if broken := next((file for file in files if not file.is_file()), None):
        raise DataError(f"{str(broken)!r} is a link to nothing, or no regular file; remove it.")
    if not files:
        raise DataError(f"The folder {str(path)!r} holds no text files (*{', *'.join(TEXT_FILES)}); give one that does.")
    kind, options = FORMATS[".txt"]
    return load_or_refuse(str(path), f"The folder {str(path)!r} cannot be read", kind, [*map(str, files)], **options)


def load_or_refuse(source: str, failure: str, kind: str = "", files: Sequence[str] = (), **options: Any) -> Any:
    """:func:`_load`, whose errors become one sentence that begins with ``failure``.

    Without ``kind``, ``source`` is a name on the Hub, with a subset if there are several: ``hotpotqa/hotpot_qa:distractor``.

    Args:
        files: read with ``kind``. Their names may contain brackets and stars, which datasets takes for patterns.

    Returns:
        The rows of the files, or the splits of a dataset on the Hub.
    """
    name, _, subset = source.partition(":")
    readers = logging.getLogger("datasets.packaged_modules")
    level = readers.level
    readers.setLevel(logging.CRITICAL)  # they log the errors that they raise
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)  # of cells that pandas leaves out
            if not kind:
                return _load(source, name, subset or None)
            return _load(source, kind, data_files=[glob.escape(file) for file in files], **options)["train"]
    except LongAttentionError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, (gzip.BadGzipFile, EOFError, zlib.error)):
            raise DataError(f"{source!r} is not a whole .gz file ({cause}); download it again.") from error
        wrong = (_encoding_error(file) for file in files if kind != "parquet")
        if refusal := next(filter(None, wrong), None):
            raise refusal from error
        first = (str(cause).splitlines() or [""])[0]
        if isinstance(cause, pandas.errors.ParserWarning) or "tokenizing data. C error: Expected" in first:
            line = re.search(r" in line \d+", first)
            raise DataError(
                f"{source} has rows with more cells than columns{', the first' + line.group() if line else ''}; put texts with separators "
                "into double quotes."
            ) from error
        if opened := re.search(r"EOF inside string starting at row (\d+)", first):
            place = f"row {opened[1]}" if int(opened[1]) else "its header"
            raise DataError(
                f"{source} has a cell in {place} that begins with a quotation mark and is not closed; close it, or write the cell in "
                'double quotes and the quotation marks in it twice ("").'
            ) from error
        if isinstance(cause, pandas.errors.EmptyDataError) or "corresponds to no data" in first or "BatchSize must be greater" in first:
            raise DataError(f"{source} has no rows; give other data.") from error
        subsets: list[str] = []
        if not kind:
            with contextlib.suppress(Exception):  # the earlier error is reported
                subsets = list(get_dataset_config_names(name))
        is_complete = subset in subsets if subset else len(subsets) < 2
        if subsets and not is_complete:
            advice = f", not {subset!r}.{nearest(subset, subsets)}" if subset else f"; name one, for example {name}:{subsets[0]}."
            raise DataError(f"{name} has the subsets {', '.join(subsets)}{advice}") from error
        raise DataError(f"{failure} ({type(cause).__name__}: {first}).") from error
    finally:
        readers.setLevel(level)


def _load(source: str, name: str, *subset: str | None, **options: Any) -> DatasetDict:
    """``datasets.load_dataset``, which does not guess the types of CSV and JSON, since it guesses anew for each file and part of a file."""
    builder = load_dataset_builder(name, *subset, **options)
    if builder.name == "json" and builder.info.features is None:
        return DatasetDict({split: _json_table(source, paths) for split, paths in builder.config.data_files.items()})
    if builder.name == "csv" and builder.info.features is None:
        first = next(iter(builder.config.data_files.values()))[0]
        reading = {**builder.config.pd_read_csv_kwargs, "chunksize": None}
        columns = pandas.read_csv(first, **{**reading, "nrows": 0}).columns
        if "names" not in reading and reading["header"] == "infer" and reading["usecols"] is None:
            header = pandas.read_csv(first, **{**reading, "nrows": 1, "header": None, "na_filter": False, "dtype": str}).iloc[0]
            if twice := [column for column, count in Counter(header).items() if column and count > 1]:  # pandas would rename the second
                raise DataError(f"The header of {source!r} names the column {twice[0]!r} more than once; give each column another name.")
        # index_col: pandas would take the first column for an index where the first row has too many cells
        options |= {"features": Features(dict.fromkeys(columns, Value("string"))), "na_filter": False, "index_col": False}
    elif builder.name == "csv":
        options |= {"keep_default_na": False, "na_values": [""]}  # a number may be missing, but "None" is a text
    return load_dataset(name, *subset, **options)


def _json_table(source: str, files: Sequence[str]) -> Dataset:
    """The rows of JSON. A column has the type of its values; values of several types, or objects, are kept as JSON."""

    def rows(texts: Iterable[str]) -> Iterator[dict[str, Any]]:
        for value in json_values(texts, source):
            if not isinstance(value, (dict, str)):
                raise DataError(f"{source!r} holds {value!r:.40}, which is no row; write rows as objects: {{'text': …}}.")
            yield {"text": value} if isinstance(value, str) else value

    texts = json_texts(source, files)
    types: dict[str, pyarrow.DataType | None] = {}
    numbered = rows(texts["text"])
    while batch := list(islice(numbered, LINES)):
        for column in dict.fromkeys(chain(types, *batch)):
            types[column] = _common_type(types.get(column, pyarrow.null()), [row.get(column) for row in batch], column, source)
    if not types:
        raise DataError(f"{source} has no rows; give other data.")
    schema = pyarrow.schema({column: kind for column, kind in types.items() if kind is not None})
    features = Features({**dict.fromkeys(types, Json()), **Features.from_arrow_schema(schema)})

    def table(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        values = list(rows(batch["text"]))
        cells = {column: [row.get(column) for row in values] for column in types}
        as_json = {column: [None if cell is None else json.dumps(cell) for cell in cells[column]] for column in types if not types[column]}
        return {**cells, **as_json}

    return texts.map(table, batched=True, batch_size=LINES, remove_columns=texts.column_names, features=features)


def _common_type(seen: pyarrow.DataType | None, values: list[Any], column: str, source: str) -> pyarrow.DataType | None:
    """The Arrow type of ``values`` and of a column's earlier ones; ``None`` for several types and for objects."""
    if seen is None:
        return None
    try:
        schemas = [pyarrow.schema({column: kind}) for kind in (seen, pyarrow.array(values).type)]
        common = pyarrow.unify_schemas(schemas, promote_options="permissive").field(0).type
    except UnicodeEncodeError as error:
        raise DataError(f"The column {column!r} of {source} has half of a character ({error}); correct its \\u escapes.") from error
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError):
        return None
    return common if SHALLOW.fullmatch(str(common)) else None


def json_texts(source: str, files: Sequence[str]) -> Dataset:
    """The texts of JSON files, for :func:`json_values`: their lines if a line is a value, else the whole files."""

    def read(unit: str) -> Dataset:
        return load_or_refuse(source, f"{source!r} cannot be read", "text", files, sample_by=unit, encoding=UTF_8)

    lines = read("line")
    try:
        list(json_values(islice((line for line in lines["text"] if line.strip()), 1), source))
    except DataError:
        return read("document")
    return lines


def json_values(texts: Iterable[str], source: str, first: int = 0) -> Iterator[Any]:
    """The values of JSON texts, one after another; those of a list singly. ``first`` is the number of the first text.

    Raises:
        DataError: a text is not valid JSON, or nested too deeply.
    """
    # Arrow would round an integer of more than 64 bits, so it stays a text
    decoder = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) <= 20 and abs(int(digits)) < 2**63 else digits)
    for number, text in enumerate(texts, first):
        at = 0
        try:
            while (at := SPACE.match(text, at).end()) < len(text):  # type: ignore[union-attr]
                value, at = decoder.raw_decode(text, at)
                yield from value if isinstance(value, list) else (value,)
        except RecursionError as error:
            raise DataError(f"{source!r} cannot be read: its JSON is nested too deeply; give rows of texts and numbers.") from error
        except json.JSONDecodeError as error:
            line = f"Line {number + error.lineno:,} of {str(source)!r}"
            raise DataError(f"{line} is not valid JSON: {error.msg} at character {error.colno}.") from error


def checked_texts(data: Dataset, source: str) -> Dataset:
    """``data``, if no text has more than :data:`LARGEST_TEXT` bytes. A tokenizer needs up to 200 bytes of memory for each byte.

    Raises:
        DataError: a text is too large.
    """
    for column in (name for name, feature in data.features.items() if _kind(feature) in STRINGS[:2]):
        sizes = pyarrow.compute.binary_length(data.data.column(column))
        row = pyarrow.compute.index(pyarrow.compute.greater(sizes, LARGEST_TEXT), True).as_py()
        if row >= 0:
            unit = {".jsonl": "Line", ".txt": "Document"}.get(Path(source).suffix.lower(), "Row")
            size, most = sizes[row].as_py() / 1e6, LARGEST_TEXT / 1e6
            raise DataError(f"{unit} {row + 1} of {source!r} has {size:,.0f} MB of text, but at most {most:,.0f} are read; split it.")
        if format_of(source) != ".tsv":
            continue
        swallows = pyarrow.compute.match_substring_regex(data.data.column(column), r"(?s)\t.*\n|\n.*\t")
        if (row := pyarrow.compute.index(swallows, True).as_py()) >= 0:
            raise DataError(
                f"Row {row + 1} of {source!r} has a cell that begins with a quotation mark and runs over lines and tabs to the next one; "
                'remove the quotation mark, or write the cell in double quotes and the quotation marks in it twice ("").'
            )
    return data


def _encoding_error(file: str) -> DataError | None:
    """The error for a file that is not UTF-8; ``None`` if it is, or cannot be read at all."""
    try:
        with (gzip.open if file.lower().endswith(".gz") else open)(file, "rt", encoding=UTF_8) as text:
            for _ in text:
                pass
    except UnicodeDecodeError as error:
        return DataError(encoding_sentence(file, error))
    except OSError:
        return None
    return None


# ---- rows that are trained on and scored, too

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


IMAGE_FILES = FileKind("image", "image", Image(decode=False), tuple(ImageFolder.EXTENSIONS), "--image-column")
RECORDING_FILES = FileKind("audio file", "audio", Audio(decode=False), AUDIO_SUFFIXES, "--audio-column")


def count_transparent(data: Dataset) -> int:
    for row in data.select_columns(["image", "name"]):
        read_image(row["image"], row["name"])
    return 0


def read_words(source: str, split: str, words_column: str | None, tags_column: str) -> Dataset:
    """Read tagged documents. Documents without words are left out.

    Args:
        source: a CoNLL file (see :func:`read_conll`), or as for :func:`.sources.read_source`.
        words_column, tags_column: lists of the same length; tags are names, or numbers of a ``datasets.ClassLabel``. ``None`` = the first
            of :data:`WORDS` that the data have.

    Raises:
        DataError: the source cannot be read, lacks a column, or has no words or missing tags.
    """
    if Path(source).suffix.lower() in CONLL:
        return read_conll(Path(source))
    data = read_source(source, split, CONLL)
    column = words_column or next((name for name in WORDS if name in data.column_names), WORDS[0])
    check_column(data, column, source, "--words-column")
    check_column(data, tags_column, source, "--tags-column")
    feature = data.features[tags_column]
    while isinstance(feature, List):
        feature = feature.feature
    if isinstance(feature, Json) or feature == Value("null"):  # values of several types, lists in some rows, or no tags
        parts = chain.from_iterable(tags for tags in data[tags_column] if isinstance(tags, list))
        kinds = {type(tag) for part in parts for tag in (part if isinstance(part, list) else [part]) if tag is not None}
        feature = Value("string") if kinds <= {str} else Value("int64") if kinds == {int} else feature
    names = feature.names if isinstance(feature, ClassLabel) else None
    name_of = label_reader(feature, tags_column, source, "--tags-column")

    def as_names(row: dict[str, Any], number: int) -> dict[str, list[Any]]:
        words, tags = row[column], row[tags_column]
        if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags) or None in tags:
            raise DataError(
                f"Row {number + 1} of {source}: {column!r} and {tags_column!r} must be lists of the same length, a tag for every word."
            )
        if names is not None and any(not 0 <= tag < len(names) for tag in tags):
            raise DataError(f"Row {number + 1} of {source} has the tag {max(tags, key=abs)}, but the classes are 0 to {len(names) - 1}.")
        if wrong := [word for word in words if not isinstance(word, (str, int, float))]:
            shown = json.dumps(wrong[0], default=str)
            raise DataError(f"Row {number + 1} of {source} has the word {shown:.40}; a word is a text or a number.")
        texts = [word if isinstance(word, str) else json.dumps(word).removesuffix(".0") for word in words]  # Arrow: 1 is 1.0 beside 2.5
        return {"words": texts, "tags": [name_of(tag, number) for tag in tags]}

    tagged = data.map(as_names, with_indices=True, remove_columns=data.column_names, features=TAGGED)
    tagged = tagged.filter(lambda row: bool(row["words"]))
    if not len(tagged):
        raise DataError(f"There are no words in {source}; give other data.")
    return tagged
