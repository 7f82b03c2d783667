"""Reading and writing question-answering data in SQuAD's schema, from wherever it comes."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Value, load_dataset, load_from_disk

from hf_longattn.errors import LongAttentionError, nearest

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

_REQUIRED = ("context", "question", "answers")


class QADataError(LongAttentionError):
    """Question-answering data that cannot be read or does not have SQuAD's schema."""


def load_qa(source: str | Path, split: str | None = None) -> Dataset:
    """Read SQuAD-shaped data.

    Args:
        source: a ``.json`` file (SQuAD's own nesting, or a list of records), a ``.jsonl``, ``.csv`` or ``.parquet`` file, a folder
            written by ``datasets`` (``save_to_disk``), or the name of a dataset on the Hub. In a ``.csv`` file, ``answers`` is JSON, or
            there are columns ``answer`` and ``answer_start`` (both empty for a question without an answer).
        split: which split, where the source has several.

    Returns:
        A dataset with at least id, context, question and answers {text, answer_start}; offsets are checked.

    Raises:
        QADataError: missing file, unknown split, missing column, or an answer that is not at its offset.
    """
    path = Path(source)
    if path.is_dir():
        data: Any = load_from_disk(str(path))
    elif path.suffix in {".json", ".jsonl"}:
        if not path.is_file():
            raise QADataError(f"data file {str(path)!r} does not exist; give a SQuAD-shaped .json, .jsonl or dataset folder")
        data = _from_records(list(_read_json(path)), str(path))
    elif path.suffix == ".csv":
        if not path.is_file():
            raise QADataError(f"data file {str(path)!r} does not exist; give a .csv with question, context, answer, answer_start")
        data = _from_records(list(_read_csv(path)), str(path))
    elif path.suffix == ".parquet":
        if not path.is_file():
            raise QADataError(f"data file {str(path)!r} does not exist; give a SQuAD-shaped .parquet file")
        data = Dataset.from_parquet(str(path))
    else:
        data = _from_hub(str(source))
    return check_qa(_choose_split(data, split, str(source)), str(source))


def save_qa(data: Iterable[dict[str, Any]], path: str | Path) -> None:
    """Write records as JSON lines, one question per line."""
    with Path(path).open("w", encoding="utf-8") as file:
        for record in data:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def check_qa(data: Dataset, name: str = "data", sample: int = 1000) -> Dataset:
    """Check columns and, on the first ``sample`` records, that every answer stands at its offset; add ids if absent."""
    missing = [column for column in _REQUIRED if column not in data.column_names]
    if missing:
        raise QADataError(
            f"{name} lacks the column {missing[0]!r} of SQuAD's schema (id, context, question, answers); "
            f"it has {', '.join(data.column_names) or 'no columns'}"
        )
    if not len(data):
        raise QADataError(f"{name} contains no questions")
    asked = False
    for record in data.select(range(min(sample, len(data)))):
        answers = record["answers"]
        if not isinstance(record["context"], str) or not isinstance(record["question"], str):
            wrong = "question" if isinstance(record["context"], str) else "context"
            raise QADataError(
                f"{name}: {wrong} must be one text, not {type(record[wrong]).__name__}, in question {record.get('id', '?')!r}"
            )
        asked |= bool(str(record["question"] or "").strip())
        if not isinstance(answers, dict) or "text" not in answers or "answer_start" not in answers:
            raise QADataError(f"{name}: answers must be {{text: [...], answer_start: [...]}} as in SQuAD, not {answers!r}")
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            if start is None or start < 0:
                raise QADataError(
                    f"{name}: the answer {text!r} of question {record.get('id', '?')!r} has answer_start {start}; an answer must be a "
                    "span of the context, so leave yes and no questions out, or give them empty lists as questions without an answer"
                )
            if not record["context"].startswith(text, start):
                raise QADataError(f"{name}: the answer {text!r} of question {record.get('id', '?')!r} does not stand at character {start}")
    if not asked:
        raise QADataError(f"all questions of {name} are empty; check its column 'question'")
    if "id" not in data.column_names:
        data = data.add_column("id", [str(index) for index in range(len(data))])
    return data


def _read_json(path: Path) -> Iterator[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    try:
        lines = [json.loads(line) for line in text.splitlines() if line.strip()] if path.suffix == ".jsonl" else json.loads(text)
    except json.JSONDecodeError as error:
        raise QADataError(f"{str(path)!r} is not valid JSON: {error}") from error
    if isinstance(lines, dict):
        if "data" not in lines:
            raise QADataError(f"{str(path)!r} has no 'data' entry; SQuAD's JSON is {{'data': [{{'paragraphs': ...}}]}}")
        lines = lines["data"]
    if not isinstance(lines, list) or not all(isinstance(entry, dict) for entry in lines):
        raise QADataError(f"{str(path)!r} must hold a list of records, or SQuAD's JSON {{'data': [{{'paragraphs': ...}}]}}")
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
                raise QADataError(f"{str(path)!r}, row {number}: no answer can be read ({error})") from error
            yield record


def _from_records(records: list[dict[str, Any]], name: str) -> Dataset:
    """Records as a dataset of the columns that are needed; others may be of any shape (HotpotQA's are nested lists)."""
    if records and any(set(record) >= {"question", "answer", "supporting_facts"} for record in records):
        raise QADataError(
            f"{name} looks like HotpotQA's own JSON, whose answers have no position in a text; give records with question, context (one "
            "text) and answers {text: [...], answer_start: [...]}"
        )
    kept = [{column: record[column] for column in QA_FEATURES if column in record} for record in records]
    try:
        return Dataset.from_list(kept)
    except Exception as error:  # pyarrow raises what it happens to raise
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise QADataError(f"the records of {name} do not have SQuAD's schema (id, context, question, answers): {why}") from error


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


def _from_hub(name: str) -> Any:
    try:
        return load_dataset(name)
    except Exception as error:
        raise QADataError(
            f"cannot read {name!r}: it is neither a .json, .jsonl, .csv or .parquet file nor a dataset folder, "
            f"and loading it from the Hub failed ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error


def _choose_split(data: Any, split: str | None, name: str) -> Dataset:
    if not isinstance(data, DatasetDict):
        return data
    if split is None and len(data) == 1:
        split = next(iter(data))
    if split not in data:
        raise QADataError(f"{name} has the splits {', '.join(data)}, not {split!r}.{nearest(str(split), data)}")
    return data[split]
