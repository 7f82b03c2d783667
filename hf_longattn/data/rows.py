"""Read the rows that a task needs, and hold some of them back for evaluation.

Rows have a column for each role of a task, such as ``text`` and ``label``. A role is filled from the first column of
the data with one of the role's recognised names, or from the column that ``--columns`` names (``named``).
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
"""Roles whose column may be missing."""
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
"""Role -> what a cell must contain, for messages. The cells of all other roles are texts."""
TYPES = {
    "score": Value("float32"),
    "number": Value("float32"),
    "words": List(Value("string")),
    "tags": List(Value("string")),
}
"""Role -> type of its column. The columns of all other roles are strings, or files."""
FILES = {"image": Image, "audio": Audio}
"""Role of files -> the type of its column in ``datasets``."""
COLUMNS = "--columns {role}=NAME"
"""The option that chooses the column of a role, for messages."""
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
    """Training rows and held-out rows, with a column for each role.

    The held-out rows are all rows of ``args.validation``, or else a tenth of every source. If nothing is trained, both
    results have all rows. ``args.max_train_samples`` and ``args.max_eval_samples`` limit their numbers. Sets
    ``args.scored_rows``.

    Args:
        args: a :class:`~hf_longattn.training.arguments.DataArguments`.
        roles: the roles of the columns; default: ``args.roles``.
        read: function that reads a split of a source; default: :func:`rows_of`.
        shuffle: shuffle rows by the seed even if they are not split.
        **units: arguments ``unit``, ``classes`` and ``most`` of :func:`split_held_out`.

    Raises:
        DataError: a source cannot be read, a column or a value is missing, or sources have different columns.
        OptionError: there are too few rows to hold some back.
    """
    if read is None:
        read = partial(rows_of, roles=args.roles if roles is None else roles, named=args.named)

    def joined(parts: Sequence[Dataset]) -> Dataset:
        data = concatenate_datasets(parts)
        if shuffle:
            data = data.select(shuffled(len(data), seed))
        return data

    # Sources with the same columns
    parts = [read(source, args.split) for source in args.data]
    first_columns = parts[0].column_names
    for source, part in zip(args.data, parts, strict=True):
        if set(part.column_names) != set(first_columns):
            raise DataError(
                f"{args.data[0]} has the columns {', '.join(first_columns)}, but {source} has "
                f"{', '.join(part.column_names)}; give data with the same columns."
            )

    if args.only_scores:
        rows = _drawn(joined(parts), args.max_eval_samples, seed)
        return rows, rows

    # Training rows and held-out rows
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
    """Training and held-out documents in the column ``text``; see :func:`read_rows`.

    ``args.template`` may make the texts from several columns. At most 1,000 documents of a source are held out
    (untuned).
    """
    read = partial(written_rows, templates=args.template) if args.template else None
    return read_rows(args, seed, read=read, most=1000, shuffle=True)


def each_part(change: Callable[[Dataset], Any], *parts: Dataset) -> list[Any]:
    """``change(part)`` for each part. If the same dataset is given twice, it is changed once."""
    changed = {part: change(part) for part in dict.fromkeys(parts)}
    return [changed[part] for part in parts]


def split_held_out(
    parts: Sequence[Dataset], seed: int, *, most: int | None = None, unit: str = "", classes: str = ""
) -> tuple[Dataset, Dataset]:
    """Divide data into training rows and held-out rows, a tenth of every source, drawn by the seed.

    The data are divided by units, whose rows stay together. If a source has at least two units, at least one is held
    out. If every source has a single unit, the last unit drawn is held out.

    Args:
        parts: the rows of each source.
        most: maximum number of held-out units of a source; ``None`` = no limit.
        unit: column whose equal values make a unit, such as the id of a question with several documents; "" = every
            row is a unit.
        classes: column of classes, which have the same shares in both results if there are enough units; "" = no
            classes.
    """
    data = concatenate_datasets(parts)
    order = shuffled(len(data), seed)

    # Units: number of the source, and value of the unit -> rows, in the drawn order
    ends = list(accumulate(map(len, parts)))
    values = data[unit][:] if unit else range(len(data))
    units: dict[tuple[int, Any], list[int]] = {}
    for row in order:
        units.setdefault((bisect_right(ends, row), values[row]), []).append(row)

    # Where a unit is among the units of its class in the drawn order, from 0 to 1. The units with the lowest tenth of
    # these quantiles have the same shares of the classes as all units.
    labels = data[classes][:] if classes else [None] * len(data)
    class_of = {key: (key[0], labels[rows[0]]) for key, rows in units.items()}
    class_sizes = Counter(class_of.values())
    counts: Counter[Any] = Counter()
    quantile = {}
    for key, name in class_of.items():
        quantile[key] = (counts[name] + 0.5) / class_sizes[name]
        counts[name] += 1

    # Held-out units of each source
    held_out_units = []
    for source in range(len(parts)):
        keys = sorted((key for key in units if key[0] == source), key=quantile.__getitem__)
        if len(keys) > 1:
            held_out_units += keys[: min(max(1, len(keys) // 10), most or len(keys))]
    if not held_out_units and len(units) > 1:
        held_out_units = list(units)[-1:]
    held_out = [row for key in held_out_units for row in units[key]]
    not_trained = set(held_out)
    return data.select([row for row in order if row not in not_trained]), data.select(held_out)


def _drawn(data: Dataset, count: int | None, seed: int) -> Dataset:
    """At most ``count`` rows, drawn by the seed, in the order of the data."""
    if count is None or count >= len(data):
        return data
    return data.select(sorted(random.Random(seed).sample(range(len(data)), count)))


def chosen_columns(
    present: Sequence[str], roles: Roles, named: Mapping[str, str], source: str, option: str = COLUMNS
) -> dict[str, str]:
    """Role -> name of its column. Roles in :data:`OPTIONAL` may be missing.

    Args:
        present: the columns of the data.
        roles: role -> recognised column names, in order of preference.
        named: role -> the name that the user gave for its column.
        source, option: name of the data, and the option that names a column, for messages.

    Raises:
        DataError: there is no column for a role.
    """
    chosen = {}
    for role, names in roles.items():
        accepted = [named[role]] if role in named else list(names)
        fitting = [name for name in accepted if name in present]
        if fitting:
            chosen[role] = fitting[0]
        elif role in named or role not in OPTIONAL:
            problem = f"{source} has the columns {', '.join(present)}, not {' or '.join(map(repr, accepted))}"
            folder = ""
            if role == "label" and len(present) == 1:
                folder = ", or put the files of each label into a folder with its name"
            similar = nearest(accepted[0] if accepted else role, present, least=0.6)
            raise DataError(f"{problem}; name one with {option.format(role=role)}{folder}.{similar}")
    return chosen


def rows_of(
    source: str, split: str, roles: Roles, named: Mapping[str, str], *, leave_out: bool = True, option: str = COLUMNS
) -> Dataset:
    """The rows of a source with a column for each role. Cells are texts, numbers, names of labels, lists or files.

    If a role is files, rows also have the column ``name``, the name of the file in messages.

    Args:
        source: see :func:`.sources.read_table`.
        roles, named, option: see :func:`chosen_columns`.
        leave_out: leave out rows in which a text is empty, with a warning.
    """
    file_roles = [role for role in roles if role in FILES]
    modality = file_roles[0] if file_roles else "text"
    source = located(source, split, modality)
    data = read_table(source, split, modality=modality)
    columns = chosen_columns(data.column_names, roles, named, source, option)
    parts = []

    # Files
    if file_roles:
        column = columns.pop(modality)
        parts.append(_files(data.select_columns([column]), modality, column, source))

    # Values
    class_names = {}  # role -> names of its classes, if its column has them
    for role, column in columns.items():
        feature = data.features[column]
        if isinstance(feature, List):
            feature = feature.feature
        class_names[role] = getattr(feature, "names", None)

    def convert(row: dict[str, Any], number: int) -> dict[str, Any]:
        return {
            role: _value(row[column], role, class_names[role], column, f"Row {number + 1} of {source}")
            for role, column in columns.items()
        }

    if columns:
        data = data.select_columns([*dict.fromkeys(columns.values())])
        features = Features({role: TYPES.get(role, Value("string")) for role in columns})
        parts.append(data.map(convert, with_indices=True, remove_columns=data.column_names, features=features))

    rows = concatenate_datasets(parts, axis=1)
    texts = [role for role in columns if role not in VALUES]  # VALUES lists the roles that are not texts
    if leave_out and texts:
        rows = with_texts(rows, texts, source)
    return rows


def with_texts(rows: Dataset, texts: Sequence[str], source: str) -> Dataset:
    """The rows in which no column of ``texts`` is empty. All other rows are left out, with a warning."""
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
    """A cell in the type of its role. A missing text is "".

    Args:
        names: names of the column's classes, if it has some.
        column, where: the column and the row, for messages.

    Raises:
        DataError: the cell is empty, or has a value that does not fit the role.
    """
    content = VALUES.get(role, "text")
    is_missing = value is None or value == "" or value != value  # NaN
    if is_missing or (names is not None and value == -1):  # -1 is a missing class in ``datasets``
        if content == "text":
            return ""
        raise DataError(f"{where} has no {role} in the column {column!r}; leave such rows out.")
    if role == "label" and isinstance(value, list):
        if len(value) != 1:
            labels = [_label(label, names) or label for label in value]
            raise DataError(
                f"{where} has {len(labels)} labels in the column {column!r}, {str(labels)!r:.60}, and must have one; "
                "leave such rows out, or choose one of them."
            )
        value = value[0]
    converted = _converted(value, role, names)
    if converted is None:
        raise DataError(
            f"{where} has {str(value)!r:.60} in the column {column!r}, no {content}; correct it, or name another "
            "column."
        )
    if content == "text" and len(converted) > LARGEST_TEXT:
        raise DataError(
            f"{where} has a text of {len(converted):,} characters, but at most {LARGEST_TEXT:,} are read; split it."
        )
    return converted


def _converted(value: Any, role: str, names: Sequence[str] | None) -> Any:
    """A value in the type of its role, or ``None`` if it does not fit the role."""
    if role == "label":
        return _label(value, names)
    if role in ("score", "number"):
        return as_number(value)
    if role == "id" and type(value) is int:
        return str(value)
    if role not in ("words", "tags"):
        return value if isinstance(value, str) else None

    # A list of words or tags
    if not isinstance(value, list):
        return None
    if role == "words":
        value = [str(word) if isinstance(word, float) else word for word in value]
    texts = [_label(word_or_tag, names) for word_or_tag in value]
    if None in texts or (role == "tags" and "" in texts):
        return None
    return texts


def _label(value: Any, names: Sequence[str] | None) -> str | None:
    """The name of a label, or ``None`` if the value is no label.

    If the column has classes (``names``), a label is the number of a class, and its name the name of the class.
    Otherwise, it is a text, a whole number, true or false.
    """
    if names is not None:
        is_class = isinstance(value, int) and 0 <= value < len(names)
        return names[value] if is_class else None
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
    """The files of a column, not read, as the column ``role``, and their names in messages as the column ``name``.

    The column of the data has files, or paths relative to the table.
    """
    feature = data.features[column]
    if isinstance(feature, (FILES[role], dict)) or "binary" in getattr(feature, "dtype", ""):
        if column != role:
            data = data.rename_column(column, role)
        data = data.cast_column(role, FILES[role](decode=False)).cast_column(role, CELL)
    else:
        folder = Path(source).resolve().parent
        paths = data[column][:]
        if not all(path is None or isinstance(path, str) for path in paths):
            raise DataError(
                f"The column {column!r} of {source} holds no {VALUES[role]}s or paths of them; name another column."
            )
        cells = [{"path": str(folder / path), "bytes": None} if path else None for path in paths]
        data = Dataset.from_dict({role: cells}, features=Features({role: CELL}))
    stored = data.with_format("arrow")[:][role]
    is_missing = stored.is_null().to_pylist()
    if True in is_missing:
        where = f"Row {is_missing.index(True) + 1} of {source}"
        raise DataError(f"{where} has no {VALUES[role]} in the column {column!r}; leave such rows out.")
    names = [
        path if path and Path(path).is_absolute() else f"row {number} of {source}"
        for number, path in enumerate(struct_field(stored, "path").to_pylist(), 1)
    ]
    return data.add_column("name", names)


def written_rows(source: str, split: str, templates: Sequence[str]) -> Dataset:
    """Texts that templates make from the columns of a source, in the column ``text``.

    A row uses the first template whose columns all have a value in this row. Rows without a template are left out.

    Args:
        templates: format strings, such as "{title}: {body}".
    """
    data = read_table(source, split)
    columns: dict[str, list[str]] = {}  # template -> its columns
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

    def fill(row: dict[str, Any]) -> dict[str, str]:
        """The text of a row; "" if no template can be filled."""
        for template in templates:
            cells = [row[name] for name in columns[template]]
            if any(cell is None or not str(cell).strip() for cell in cells):
                continue
            try:
                return {"text": template.format_map(row)}
            except (ValueError, TypeError) as error:
                raise DataError(
                    f"The template {template!r} does not suit {source} ({error}); leave out the part after a colon."
                ) from error
        return {"text": ""}

    rows = data.map(fill, remove_columns=data.column_names, features=Features({"text": Value("string")}))
    return with_texts(rows, ["text"], source)


def trained_rows(train: Dataset, scored: Dataset) -> int:
    """Number of ``scored`` rows that also occur in ``train``. Ids and titles are not compared, and files by path."""
    columns = [
        name for name in scored.column_names if name in train.column_names and name not in ("id", "name", "title")
    ]
    trained = {hash(repr(row)) for row in train.select_columns(columns)}
    return sum(hash(repr(row)) in trained for row in scored.select_columns(columns))
