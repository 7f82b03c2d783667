"""Training data from files, folders and the Hub: plain text, labelled documents, and questions in SQuAD's schema.

What cannot be read, has not the columns it should have, or holds something else in them is refused with one sentence.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, concatenate_datasets, load_dataset, load_from_disk

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
LABELLED = Features({"text": Value("string"), "label": Value("string")})

QA_FEATURES = Features(
    {
        "id": Value("string"),
        "title": Value("string"),
        "context": Value("string"),
        "question": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int32"))},
        "tokens": Value("int32"),
    }
)
"""SQuAD's schema and ``tokens``, the length of the context."""
QA_FORMATS = (".json", ".jsonl", ".csv", ".parquet")
_REQUIRED = ("context", "question", "answers")


class DataError(LongAttentionError):
    """Training data that cannot be read, or that lacks what the task needs."""


def read_source(source: str, split: str = "train") -> Dataset:
    """Read one source with all its columns.

    Args:
        source: a .txt, .jsonl, .csv, .tsv or .parquet file, a folder of text files, a folder written by ``datasets``, or the
            name of a dataset on the Hub. A .txt file, and every file of a folder, is one document, in the column ``text``.
        split: which split, if the source has several.

    Raises:
        DataError: missing or unreadable file, empty folder, unknown split.
    """
    path = Path(source)
    if path.is_dir():
        return _choose(load_from_disk(source), split, source) if _saved(path) else _documents(path)
    if path.suffix in FORMATS:
        if not path.is_file():
            raise DataError(f"data file {source!r} does not exist")
        kind, options = FORMATS[path.suffix]
        return _read(source, f"the file {source!r} cannot be read", kind, data_files=source, split="train", **options)
    found = _read(
        source, f"cannot read {source!r}: it is neither a {', '.join(FORMATS)} file nor a folder, and loading it from the Hub failed"
    )
    return _choose(found, split, source)


def is_plain_text(source: str) -> bool:
    """Whether a source holds documents without further columns."""
    path = Path(source)
    return path.suffix == ".txt" or (path.is_dir() and not _saved(path))


def check_column(data: Dataset, column: str, source: str, *, text: bool = False) -> str:
    """Return ``column`` if the data have it, holding text if it must."""
    if column not in data.column_names:
        raise DataError(f"{source} has the columns {', '.join(data.column_names)}, not {column!r}.{nearest(column, data.column_names)}")
    kind = getattr(data.features[column], "dtype", "a list")
    if text and kind not in ("string", "large_string", "null"):
        raise DataError(f"the column {column!r} of {source} holds {kind}, not text; the columns are {', '.join(data.column_names)}")
    return column


def load_text(sources: list[str], *, split: str = "train", column: str = "text", limit: int = 0, seed: int = 0) -> Dataset:
    """Read documents.

    Args:
        sources: see :func:`read_source`.
        split: which split, if a source has several.
        column: which column holds the text.
        limit: maximum number of documents, chosen by ``seed``; 0 = all.
        seed: the order of the documents.

    Returns:
        A dataset with the column ``text``.

    Raises:
        DataError: missing file, unknown split or column, or nothing to read.
    """
    data = concatenate_datasets([_load_text(source, split, column) for source in sources]).filter(
        lambda row: bool((row["text"] or "").strip())
    )
    if not len(data):
        raise DataError(f"there is no text in {', '.join(sources)}")
    order = list(range(len(data)))
    random.Random(seed).shuffle(order)
    return data.select(order[: limit or None])


def load_labelled(source: str, *, split: str = "train", text_column: str = "text", label_column: str = "label") -> Dataset:
    """Read documents and the names of their labels.

    Args:
        source: a folder with one sub-folder of text files per label, or see :func:`read_source`.
        split: which split, if the source has several.
        text_column, label_column: names of columns; labels are names, whole numbers or ``datasets.ClassLabel``.

    Returns:
        A dataset with the columns ``text`` and ``label``, both text; rows without text are left out.

    Raises:
        DataError: the source cannot be read, a column is missing, or a row has no label or one that is no class.
    """
    path = Path(source)
    if path.is_dir() and is_plain_text(source):
        if not any(child.is_dir() for child in path.iterdir()):
            raise DataError(f"the folder {source!r} has no sub-folders; every label needs one, with its texts in it")
        data, text_column, label_column = _labelled_folder(path), "text", "label"
    elif is_plain_text(source):
        raise DataError(f"{source!r} holds text without labels; give a table with two columns, or a folder with one per label")
    else:
        data = read_source(source, split)
        check_column(data, text_column, source, text=True)
        check_column(data, label_column, source)
    labels = _label_names(data, label_column, source)
    rows = [(text, label) for text, label in zip(data[text_column], labels, strict=True) if text and text.strip()]
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    return Dataset.from_dict(columns, features=LABELLED)


def load_qa(source: str | Path, split: str | None = None) -> Dataset:
    """Read SQuAD-shaped data.

    Args:
        source: a ``.json`` file (SQuAD's own nesting, or a list of records), a ``.jsonl``, ``.csv`` or ``.parquet`` file, a folder
            written by ``datasets`` (``save_to_disk``), or the name of a dataset on the Hub. In a ``.csv`` file, ``answers`` is JSON, or
            there are columns ``answer`` and ``answer_start`` (both empty for a question without an answer).
        split: which split, if the source has several.

    Returns:
        A dataset with at least id, context, question and answers {text, answer_start}; offsets are checked.

    Raises:
        DataError: missing file, unknown split, missing column, or an answer that is not at its offset.
    """
    path, name = Path(source), str(source)
    if path.suffix in QA_FORMATS and not path.exists():
        raise DataError(
            f"data file {name!r} does not exist; give a SQuAD-shaped {', '.join(QA_FORMATS)} file or a folder written by datasets"
        )
    if path.is_dir():
        data: Any = load_from_disk(name)
    elif path.suffix in (".json", ".jsonl"):
        data = _from_records(list(_read_json(path)), name)
    elif path.suffix == ".csv":
        data = _from_records(list(_read_csv(path)), name)
    elif path.suffix == ".parquet":
        data = Dataset.from_parquet(name)
    else:
        kinds = ", ".join(QA_FORMATS)
        data = _read(name, f"cannot read {name!r}: it is neither a {kinds} file nor a dataset folder, and loading it from the Hub failed")
    if split is None and isinstance(data, DatasetDict) and len(data) == 1:
        split = next(iter(data))
    return check_qa(_choose(data, split, name), name)


def save_qa(data: Iterable[dict[str, Any]], path: str | Path) -> None:
    """Write records as JSON lines, one question per line."""
    with Path(path).open("w", encoding="utf-8") as file:
        for record in data:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def check_qa(data: Dataset, name: str = "data", sample: int = 1000) -> Dataset:
    """Check columns and, on the first ``sample`` records, that every answer is at its offset; add ids if absent."""
    missing = [column for column in _REQUIRED if column not in data.column_names]
    if missing:
        raise DataError(
            f"{name} lacks the column {missing[0]!r} of SQuAD's schema (id, context, question, answers); "
            f"it has {', '.join(data.column_names) or 'no columns'}"
        )
    if not len(data):
        raise DataError(f"{name} contains no questions")
    asked = False
    for record in data.select(range(min(sample, len(data)))):
        answers = record["answers"]
        if not isinstance(record["context"], str) or not isinstance(record["question"], str):
            wrong = "question" if isinstance(record["context"], str) else "context"
            raise DataError(f"{name}: {wrong} must be one text, not {type(record[wrong]).__name__}, in question {record.get('id', '?')!r}")
        asked |= bool(str(record["question"] or "").strip())
        if not isinstance(answers, dict) or "text" not in answers or "answer_start" not in answers:
            raise DataError(f"{name}: answers must be {{text: [...], answer_start: [...]}} as in SQuAD, not {answers!r}")
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            if start is None or start < 0:
                raise DataError(
                    f"{name}: the answer {text!r} of question {record.get('id', '?')!r} has answer_start {start}; an answer must be a "
                    "span of the context, so leave yes and no questions out, or give them empty lists as questions without an answer"
                )
            if not record["context"].startswith(text, start):
                raise DataError(f"{name}: the answer {text!r} of question {record.get('id', '?')!r} is not at character {start}")
    if not asked:
        raise DataError(f"all questions of {name} are empty; check its column 'question'")
    if "id" not in data.column_names:
        data = data.add_column("id", [str(index) for index in range(len(data))])
    return data


def _read_json(path: Path) -> Iterator[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    try:
        lines = [json.loads(line) for line in text.splitlines() if line.strip()] if path.suffix == ".jsonl" else json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{str(path)!r} is not valid JSON: {error}") from error
    if isinstance(lines, dict):
        if "data" not in lines:
            raise DataError(f"{str(path)!r} has no 'data' entry; SQuAD's JSON is {{'data': [{{'paragraphs': ...}}]}}")
        lines = lines["data"]
    if not isinstance(lines, list) or not all(isinstance(entry, dict) for entry in lines):
        raise DataError(f"{str(path)!r} must hold a list of records, or SQuAD's JSON {{'data': [{{'paragraphs': ...}}]}}")
    for entry in lines:
        yield from _flatten(entry) if "paragraphs" in entry else [entry]


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table, with ``answers`` from JSON or from the columns ``answer`` and ``answer_start``."""
    csv.field_size_limit(2**31 - 1)  # documents are long
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            record: dict[str, Any] = {name: value for name, value in row.items() if name and name not in ("answer", "answer_start")}
            try:
                if row.get("answers"):
                    record["answers"] = json.loads(row["answers"])
                elif "answer" in row and "answer_start" in row:
                    found = bool(row["answer"])
                    record["answers"] = {"text": [row["answer"]] * found, "answer_start": [int(row["answer_start"])] if found else []}
            except (ValueError, TypeError) as error:
                raise DataError(f"{str(path)!r}, row {number}: no answer can be read ({error})") from error
            yield record


def _from_records(records: list[dict[str, Any]], name: str) -> Dataset:
    """Records as a dataset of the columns that are needed; others may be of any shape (HotpotQA's are nested lists)."""
    if records and any(set(record) >= {"question", "answer", "supporting_facts"} for record in records):
        raise DataError(
            f"{name} looks like HotpotQA's own JSON, whose answers have no position in a text; give records with question, context (one "
            "text) and answers {text: [...], answer_start: [...]}"
        )
    kept = [{column: record[column] for column in QA_FEATURES if column in record} for record in records]
    try:
        return Dataset.from_list(kept)
    except Exception as error:  # pyarrow raises what it happens to raise
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"the records of {name} do not have SQuAD's schema (id, context, question, answers): {why}") from error


def _flatten(article: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the questions of one article of SQuAD's nested JSON (versions 1.1 and 2.0)."""
    for paragraph in article["paragraphs"]:
        for qa in paragraph["qas"]:
            answers = qa.get("answers") or []
            yield {
                "id": str(qa["id"]),
                "title": article.get("title", ""),
                "context": paragraph["context"],
                "question": qa["question"],
                "answers": {
                    "text": [answer["text"] for answer in answers],
                    "answer_start": [answer["answer_start"] for answer in answers],
                },
            }


def _load_text(source: str, split: str, column: str) -> Dataset:
    data = read_source(source, split)
    column = "text" if is_plain_text(source) else check_column(data, column, source, text=True)
    return data.select_columns([column]).rename_columns({} if column == "text" else {column: "text"})


def _labelled_folder(path: Path) -> Dataset:
    """One document per file, labelled by its sub-folder."""
    names = sorted(child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    rows: dict[str, list[Any]] = {"text": [], "label": []}
    for number, name in enumerate(names):
        texts = list(_documents(path / name)["text"])
        rows["text"] += texts
        rows["label"] += [number] * len(texts)
    return Dataset.from_dict(rows, Features({"text": Value("string"), "label": ClassLabel(names=names)}))


def _label_names(data: Dataset, column: str, source: str) -> list[str]:
    feature, values = data.features[column], data[column]
    if isinstance(feature, ClassLabel):
        if any(value is None or value < 0 for value in values):
            raise DataError(f"{source} has rows without a label in the column {column!r}; leave them out")
        return [feature.names[value] for value in values]
    kind = getattr(feature, "dtype", "a list")
    if kind in ("float32", "float64") and all(value is not None and float(value).is_integer() for value in values):
        values = [int(value) for value in values]
    elif not (kind in ("string", "large_string", "bool") or kind.startswith(("int", "uint"))):
        raise DataError(
            f"the column {column!r} of {source} holds {kind}, but a class is a name or a whole number; name another with --label-column"
        )
    missing = next((row for row, value in enumerate(values) if value is None or value == ""), None)
    if missing is not None:
        raise DataError(f"row {missing + 1} of {source} has no label in the column {column!r}; leave such rows out")
    return [str(value) for value in values]


def _saved(path: Path) -> bool:
    return (path / "state.json").exists() or (path / "dataset_dict.json").exists()


def _documents(path: Path) -> Dataset:
    files = sorted(str(file) for pattern in TEXT_FILES for file in path.rglob(pattern))
    if not files:
        raise DataError(f"the folder {str(path)!r} holds no text files ({', '.join(TEXT_FILES)})")
    return _read(str(path), f"the folder {str(path)!r} cannot be read", "text", data_files=files, sample_by="document", split="train")


def _read(source: str, failure: str, kind: str = "", **options: Any) -> Any:
    try:
        return load_dataset(kind or source, **options)
    except Exception as error:
        cause = error.__cause__ or error
        first = (str(cause).splitlines() or [""])[0]
        raise DataError(f"{failure} ({type(cause).__name__}: {first})") from error


def _choose(data: Any, split: str | None, source: str) -> Dataset:
    if not isinstance(data, DatasetDict):
        return data
    if split not in data:
        raise DataError(f"{source} has the splits {', '.join(data)}, not {split!r}.{nearest(str(split), data)}")
    return data[split]
