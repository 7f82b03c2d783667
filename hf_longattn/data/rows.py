"""Rows with the columns that a task needs: texts, labels, scores, words or files. Some rows are held out.

Rows have a column for each of a task's ``roles``. :class:`~hf_longattn.training.arguments.DataArguments` explains it
and ``named``.
"""

from __future__ import annotations

import math
import random
import string
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from datasets import Audio, Dataset, Features, Image, List, Value, concatenate_datasets
from pyarrow.compute import struct_field

from ..errors import OptionError, nearest
from ..names import logger
from .batching import shuffled
from .sources import CELL, DataError, located, read_table

Roles = Mapping[str, Sequence[str]]
"""Role -> recognised column names. The first column that exists is used."""
OPTIONAL = ("question", "negative", "score", "id")
VALUES = {
    "label": "name or whole number",
    "score": "number",
    "number": "number",
    "words": "list of texts and numbers",
    "tags": "list of names or whole numbers",
    "image": "image",
    "audio": "audio file",
    "id": "text or whole number",
}
"""Role -> content of a cell, for messages. Other roles are texts."""
TYPES = {
    "score": Value("float32"),
    "number": Value("float32"),
    "words": List(Value("string")),
    "tags": List(Value("string")),
}
"""Role -> the type of its column. Other columns are texts, or files."""
FILES = {"image": Image, "audio": Audio}
"""Role with files -> ``datasets`` feature for its column."""
COLUMNS = "--columns {role}=NAME"
"""The option for choosing the column of a role."""
LARGEST_TEXT = 16_000_000
"""Maximum characters of one document, five times War and Peace. A tokenizer needs up to 200 bytes of memory per
character."""


def read_rows(
    args: Any,
    seed: int,
    roles: Roles | None = None,
    *,
    read: Callable[..., Dataset] | None = None,
    shuffle: bool = False,
    **units: Any,
) -> tuple[Dataset, Dataset]:
    """Training rows, and held-out rows (all of ``--validation``, or a tenth of every source), with a column for each
    role.

    ``max_train_samples`` and ``max_eval_samples`` limit them. If nothing is trained, both have all rows.

    Args:
        roles: default: ``args.roles``.
        read: reads a split of a source; default: :func:`rows_of`.
        shuffle: also shuffle rows that are not split, by the seed.
        **units: ``unit``, ``classes`` and ``most`` of :func:`split_held_out`.

    Raises:
        DataError: a source cannot be read, a column or a value is missing, or sources have different columns.
        OptionError: there are too few rows for a held-out part.
    """
    read = read or partial(rows_of, roles=args.roles if roles is None else roles, named=args.named)

    def joined(parts: Sequence[Dataset]) -> Dataset:
        data = concatenate_datasets(parts)
        return data.select(shuffled(len(data), seed)) if shuffle else data

    parts = [read(source, args.split) for source in args.data]
    for source, part in zip(args.data, parts, strict=True):
        if set(part.column_names) != set(parts[0].column_names):
            columns = [", ".join(each.column_names) for each in (parts[0], part)]
            raise DataError(
                f"{args.data[0]} has the columns {columns[0]}, but {source} has {columns[1]}; give data of one shape."
            )
    if args.only_scores:
        train = held_out = _drawn(joined(parts), args.max_eval_samples, seed)
    else:
        if args.validation:
            train = joined(parts)
            held_out = joined([read(args.validation, "validation")])
        else:
            train, held_out = split_held_out(parts, seed, **units)
        if not len(held_out):
            count = f"are {len(train)} rows of one {units.get('unit')}"
            if len(train) == 1:
                count = "is only one row"
            raise OptionError(
                f"There {count} in {', '.join(args.data)}, too few to hold some back for evaluation; give "
                "--validation DATA."
            )
        train = _drawn(train, args.max_train_samples, seed)
        held_out = _drawn(held_out, args.max_eval_samples, seed)
        args.scored_rows = {"n": len(held_out), "trained": trained_rows(train, held_out)}
    return train, held_out


def read_texts(args: Any, seed: int) -> tuple[Dataset, Dataset]:
    """:func:`read_rows` of documents in the column ``text``, which ``args.template`` may make of several columns."""
    read = partial(written_rows, templates=args.template) if args.template else None
    return read_rows(args, seed, read=read, most=1000, shuffle=True)  # untuned


def each_part(change: Callable[[Dataset], Any], *parts: Dataset) -> list[Any]:
    """``change(part)`` for each part. If a part occurs twice, ``change`` runs once."""
    changed = {part: change(part) for part in dict.fromkeys(parts)}
    return [changed[part] for part in parts]


def split_held_out(
    parts: Sequence[Dataset], seed: int, *, most: int | None = None, unit: str = "", classes: str = ""
) -> tuple[Dataset, Dataset]:
    """Divide data into training rows and held-out rows, a tenth of every source, drawn by the seed.

    A source of two or more units gives at least one. If no source has two, the last unit drawn is held out.

    Args:
        most: maximum held-out units of a source; ``None`` = no limit.
        unit: rows with equal values in this column stay together, such as the documents of a question; "" = every row
            is a unit.
        classes: the values in this column have the same shares in both parts, if there are enough units; "" = no
            classes.
    """
    ends = list(accumulate(map(len, parts)))
    data = concatenate_datasets(parts)
    order = shuffled(len(data), seed)
    values = data[unit][:] if unit else range(len(data))
    units: dict[tuple[int, Any], list[int]] = {}
    for row in order:
        units.setdefault((bisect_right(ends, row), values[row]), []).append(row)
    labels = data[classes][:] if classes else [None] * len(data)
    class_of = {key: (key[0], labels[rows[0]]) for key, rows in units.items()}
    sizes = Counter(class_of.values())
    drawn_of_class: Counter[Any] = Counter()
    quantile = {}
    for key, group in class_of.items():  # the lowest tenth of the quantiles has the shares of all
        quantile[key] = (drawn_of_class[group] + 0.5) / sizes[group]
        drawn_of_class[group] += 1
    drawn = []
    for source in range(len(parts)):
        keys = sorted((key for key in units if key[0] == source), key=quantile.__getitem__)
        if len(keys) > 1:
            drawn += keys[: min(max(1, len(keys) // 10), most or len(keys))]
    held_out = [row for key in drawn or list(units)[1:][-1:] for row in units[key]]
    chosen = set(held_out)
    return data.select([row for row in order if row not in chosen]), data.select(held_out)


def _drawn(data: Dataset, count: int | None, seed: int) -> Dataset:
    """At most ``count`` rows, drawn by the seed, in their order."""
    if count is None or count >= len(data):
        return data
    return data.select(sorted(random.Random(seed).sample(range(len(data)), count)))


def chosen_columns(
    present: Sequence[str], roles: Roles, named: Mapping[str, str], source: str, option: str = COLUMNS
) -> dict[str, str]:
    """Role -> name of its column."""
    chosen = {}
    for role, names in roles.items():
        wanted = [named[role]] if role in named else list(names)
        column = next((name for name in wanted if name in present), None)
        if column is not None:
            chosen[role] = column
        elif role in named or role not in OPTIONAL:
            others = f"{source} has the columns {', '.join(present)}, not {' or '.join(map(repr, wanted))}"
            folder = ""
            if role == "label" and len(present) == 1:
                folder = ", or put the files of each label into a folder with its name"
            close = nearest(next(iter(wanted), role), present, least=0.6)
            raise DataError(f"{others}; name one with {option.format(role=role)}{folder}.{close}")
    return chosen


def rows_of(
    source: str, split: str, roles: Roles, named: Mapping[str, str], *, leave_out: bool = True, option: str = COLUMNS
) -> Dataset:
    """The rows of a source with a column for each role. Cells are texts, numbers, names of labels, lists or files.

    Rows of files have a ``name`` for messages.

    Args:
        leave_out: leave out rows in which a text is empty, with a warning.
        option: the option for choosing a column, in messages.
    """
    file = next((role for role in roles if role in FILES), None)
    source = located(source, split, file or "text")
    data = read_table(source, split, modality=file or "text")
    columns = chosen_columns(data.column_names, roles, named, source, option)
    parts = [] if file is None else [_files(data.select_columns([columns[file]]), file, columns[file], source)]
    values: dict[str, tuple[str, Sequence[str] | None]] = {}
    for role, column in columns.items():
        if role != file:
            feature = data.features[column]
            if isinstance(feature, List):
                feature = feature.feature
            values[role] = column, getattr(feature, "names", None)  # the names of a ClassLabel

    def convert(row: dict[str, Any], number: int) -> dict[str, Any]:
        return {
            role: _value(row[column], role, names, column, f"Row {number + 1} of {source}")
            for role, (column, names) in values.items()
        }

    if values:
        data = data.select_columns([*dict.fromkeys(column for column, _ in values.values())])
        features = Features({role: TYPES.get(role, Value("string")) for role in values})
        parts.append(data.map(convert, with_indices=True, remove_columns=data.column_names, features=features))
    rows = concatenate_datasets(parts, axis=1)
    texts = [role for role in values if role not in VALUES]  # VALUES lists the roles that are not texts
    return with_texts(rows, texts, source) if leave_out and texts else rows


def with_texts(rows: Dataset, texts: Sequence[str], source: str) -> Dataset:
    """Rows without an empty text; others are left out, with a warning."""
    filled = rows.filter(lambda row: all(row[role].strip() for role in texts))
    if not len(filled):
        raise DataError(f"There is no {' and '.join(texts)} in {source}; give other data, or name another column.")
    if len(filled) < len(rows):
        logger.warning(
            f"{len(rows) - len(filled):,} of {len(rows):,} rows of {source} have no {' or '.join(texts)} and are left "
            "out."
        )
    return filled


def _value(value: Any, role: str, names: Sequence[str] | None, column: str, where: str) -> Any:
    """Convert a value to the type of its role; "" for a missing text."""
    what = VALUES.get(role, "text")
    if value is None or value == "" or value != value or (names is not None and value == -1):
        if what == "text":
            return ""
        raise DataError(f"{where} has no {role} in the column {column!r}; leave such rows out.")
    if role == "label" and isinstance(value, list):
        if len(value) != 1:
            labels = [_label(each, names) or each for each in value]
            raise DataError(
                f"{where} has {len(labels)} labels in the column {column!r}, {str(labels)!r:.60}, and must have one; "
                "leave such rows out, or choose one of them."
            )
        value = value[0]
    converted = _converted(value, role, names)
    if converted is None:
        raise DataError(
            f"{where} has {str(value)!r:.60} in the column {column!r}, no {what}; correct it, or name another column."
        )
    if what == "text" and len(converted) > LARGEST_TEXT:
        raise DataError(
            f"{where} has a text of {len(converted):,} characters, but at most {LARGEST_TEXT:,} are read; split it."
        )
    return converted


def _converted(value: Any, role: str, names: Sequence[str] | None) -> Any:
    """A value in the type of its role; ``None`` if it is of another type."""
    if role == "label":
        return _label(value, names)
    if role in ("score", "number"):
        return as_number(value)
    if role == "id" and type(value) is int:
        return str(value)
    if role not in ("words", "tags"):
        return value if isinstance(value, str) else None
    if not isinstance(value, list):
        return None
    if role == "words":
        value = [str(each) if isinstance(each, float) else each for each in value]
    cells = [_label(each, names) for each in value]
    unsuitable = None in cells or (role == "tags" and "" in cells)
    return None if unsuitable else cells


def _label(value: Any, names: Sequence[str] | None) -> str | None:
    """The name of a label that is a text, a whole number, a truth value or the number of a class; else ``None``."""
    if names is not None:
        return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
    if isinstance(value, bool):
        return str(value).lower()  # as JSON writes it
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else None
    return str(value) if isinstance(value, (str, int)) else None


def as_number(value: Any) -> float | None:
    """A JSON value or table cell as a finite number; ``None`` if it is not a number."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _files(data: Dataset, role: str, column: str, source: str) -> Dataset:
    """The unread files of a column in the column ``role``, with names for messages in the column ``name``."""
    feature = data.features[column]
    if isinstance(feature, (FILES[role], dict)) or "binary" in getattr(feature, "dtype", ""):
        if column != role:
            data = data.rename_column(column, role)
        data = data.cast_column(role, FILES[role](decode=False)).cast_column(role, CELL)
    else:  # paths relative to the table
        folder, paths = Path(source).resolve().parent, data[column][:]
        if not all(path is None or isinstance(path, str) for path in paths):
            raise DataError(
                f"The column {column!r} of {source} holds no {VALUES[role]}s or paths of them; name another column."
            )
        cells = [{"path": str(folder / path), "bytes": None} if path else None for path in paths]
        data = Dataset.from_dict({role: cells}, features=Features({role: CELL}))
    stored = data.with_format("arrow")[:][role]
    if True in (missing := stored.is_null().to_pylist()):
        where = f"Row {missing.index(True) + 1} of {source}"
        raise DataError(f"{where} has no {VALUES[role]} in the column {column!r}; leave such rows out.")
    paths = enumerate(struct_field(stored, "path").to_pylist(), 1)
    names = [path if path and Path(path).is_absolute() else f"row {number} of {source}" for number, path in paths]
    return data.add_column("name", names)


def written_rows(source: str, split: str, templates: Sequence[str]) -> Dataset:
    """Texts in the column ``text``. A row's text comes from the first template for which all columns have a value."""
    data, columns = read_table(source, split), dict[str, list[str]]()
    for template in templates:
        try:
            columns[template] = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
        except ValueError:
            columns[template] = []
        if not columns[template]:
            example = "'{title}: {text}', with {{ and }} for braces"
            raise OptionError(
                f"--template takes texts that name columns in braces, for example {example}, not {template!r}."
            )
        names = {name: name for name in columns[template]}
        chosen_columns(data.column_names, dict.fromkeys(names, ()), names, source, "--template")

    def written(row: dict[str, Any]) -> dict[str, str]:
        filled = (
            each
            for each in templates
            if all(row[name] is not None and str(row[name]).strip() for name in columns[each])
        )
        template = next(filled, "")
        try:
            return {"text": template.format_map(row)}
        except (ValueError, TypeError) as error:
            raise DataError(
                f"The template {template!r} does not suit {source} ({error}); leave out the part after a colon."
            ) from error

    return with_texts(
        data.map(written, remove_columns=data.column_names, features=Features({"text": Value("string")})),
        ["text"],
        source,
    )


def trained_rows(train: Dataset, scored: Dataset) -> int:
    """Number of ``scored`` rows that also occur in ``train``, ids aside. Files are compared by their paths."""
    columns = [
        name for name in scored.column_names if name in train.column_names and name not in ("id", "name", "title")
    ]
    trained = {hash(repr(row)) for row in train.select_columns(columns)}
    return sum(hash(repr(row)) in trained for row in scored.select_columns(columns))
