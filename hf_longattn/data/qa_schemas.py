"""Questions about documents: files in several schemas become examples of one schema.

SQuAD 1 and 2 (nested JSON or flat), MRQA, HotpotQA, and plain ``question``, ``context``, ``answer``. Where the data give answers without
their places (HotpotQA, plain answers), every occurrence in the document counts as one (distant supervision, Joshi et al. 2017; Clark &
Gardner 2018). Other data are written in the common schema first, by :func:`save_qa`; for TriviaQA and Natural Questions, ``scripts/`` has a
program each.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, Features, List, Value
from transformers.utils import logging

from hf_longattn.data.answers import occurrences
from hf_longattn.data.sources import LINES, DataError, as_number, check_file, json_texts, json_values, read_source, saved_by_datasets
from hf_longattn.names import LOGGER

logger = logging.get_logger(LOGGER)

ANSWERS = {"text": List(Value("string")), "answer_start": List(Value("int32"))}
EXAMPLE = Features(
    {
        **{name: Value("string") for name in ("id", "title", "context", "question")},
        "answers": ANSWERS,
        "gold": List(Value("string")),
        "kind": Value("string"),
        "document": Value("string"),
    }
)
"""What :func:`load_qa` returns."""
KINDS = ("span", "yes", "no", "none")
PEEKED = 1000
"""Number of rows that are read to recognise a file's schema."""
SHOWN = 3
"""Bad rows that a message quotes."""
IDS = ("id", "_id", "qid", "question_id")
"""Names of a question's id in the schemas."""
MARKS = {**dict.fromkeys(("true", "yes", "1", "1.0"), True), **dict.fromkeys(("false", "no", "0", "0.0"), False), "": None}
"""What ``is_impossible`` says, in small letters; empty = nothing."""


class RowError(ValueError):
    """Why one row cannot be used."""


def load_qa(source: str | Path, split: str | None = None, *, skip_bad_rows: bool = False) -> Dataset:
    """Read questions, documents and answers.

    Args:
        source: a ``.json``, ``.jsonl``, ``.csv`` or ``.tsv`` file (also ``.gz``), a ``.parquet`` file, a folder written by ``datasets``
            (``save_to_disk``), or the name of a dataset on the Hub, in one of the schemas of :data:`SCHEMAS`. In a table, ``answers`` may
            be JSON, or there are columns ``answer`` and ``answer_start``, or only ``answer``, which counts where ``answers`` are empty.
            Empty answers are those of questions without an answer, wherever they start.
        split: which split, if the source has several.
        skip_bad_rows: leave out rows that cannot be used, with a warning.

    Returns:
        A dataset with the columns of :data:`EXAMPLE`: ``answers`` {text, answer_start} are all correct spans of ``context``, ``gold`` the
        texts to score against, ``kind`` one of :data:`KINDS`. A question about several documents (TriviaQA) has one example for each
        ``document``, with the question's ``id``.

    Raises:
        DataError: missing file, unknown split, unknown columns, nothing to read, or rows that cannot be used.
    """
    path, name = Path(source), str(source)
    if path.is_dir() and not saved_by_datasets(path):
        raise DataError(f"The folder {name!r} was not written by datasets (save_to_disk); give a file, such as SQuAD's .json.")
    in_json = path.exists() and not path.is_dir() and check_file(name).startswith(".json")
    if in_json:

        def flat(batch: dict[str, list[str]], numbers: list[int]) -> dict[str, list[str]]:
            return {"row": [json.dumps(row) for row in _nested(json_values(batch["text"], name, numbers[0]), name)]}

        texts = json_texts(name, [name])
        data = texts.map(flat, with_indices=True, batched=True, batch_size=LINES, remove_columns="text")
        columns = set().union(*map(json.loads, data[:PEEKED].get("row", ())))
    else:
        data = read_source(name, split)
        columns = set(data.column_names)
    if not len(data):
        raise DataError(f"{name} contains no questions; give a file with at least one.")
    convert = functools.partial(_convert, recognised(columns, name), in_json=in_json)
    rows = data.map(convert, with_indices=True, remove_columns=data.column_names, features=_WITH_PROBLEM)
    return _checked(rows, name, skip_bad_rows)


def save_qa(data: Iterable[dict[str, Any]], path: str | Path) -> None:
    """Write examples, as :func:`load_qa` gives them, as JSON lines, one question per line."""
    with Path(path).open("w", encoding="utf-8") as file:
        for example in data:
            file.write(json.dumps(example, ensure_ascii=False) + "\n")


def _common(row: Mapping[str, Any]) -> dict[str, Any]:
    """Examples of this package (:func:`save_qa`): SQuAD's columns, the texts to score against, the kind, and perhaps the document."""
    if row["kind"] not in KINDS:
        raise RowError(f"The kind must be one of {', '.join(KINDS)}, not {row['kind']!r}.")
    return {**_squad(row), "gold": list(row["gold"]), "kind": row["kind"], "document": row.get("document") or ""}


def _squad(row: Mapping[str, Any]) -> dict[str, Any]:
    """context, question, answers: {text, answer_start}, or a list of such, or of plain texts; or answer and, if known, answer_start."""
    answers = _answers(row)
    if isinstance(answers, list) and answers and all(isinstance(answer, dict) and "text" in answer for answer in answers):
        answers = {name: [answer.get(name) for answer in answers] for name in ANSWERS}
    of_texts = isinstance(answers, list) and not any(isinstance(answer, dict) for answer in answers)
    if of_texts or answers is None or isinstance(answers, str):
        return _searched(row, answers)
    if not isinstance(answers, dict) or "text" not in answers:
        raise RowError(f"The answers must be {{text: [...], answer_start: [...]}} as in SQuAD, not {answers!r}.")
    texts, starts = (value if isinstance(value, list) else [value] for value in map(answers.get, ANSWERS))
    if all(map(_is_empty, texts)) or all(start is None for start in starts):
        return _searched(row, texts)
    if len(texts) != len(starts):
        raise RowError(f"{len(texts)} answers have {len(starts)} places; give one answer_start for each.")
    spans = [(str(text), start) for text, start in zip(texts, starts, strict=True) if not _is_empty(text)]
    for text, start in spans:
        number = None if isinstance(start, str) else as_number(start)
        if number is None or not number.is_integer():
            raise RowError(f"The answer {text!r} has the answer_start {start!r}; it must be a whole number, the answer's first character.")
        if number < 0:
            raise RowError(
                f"The answer {text!r} has answer_start {start}; an answer must be a span of the context, so give yes and no questions in "
                "HotpotQA's schema, and empty lists to questions without an answer."
            )
        if not _text(row, "context").startswith(text, int(number)):
            raise RowError(f"The answer {text!r} is not at character {start}; correct its answer_start.")
    return {"answers": {"text": [text for text, _ in spans], "answer_start": [int(start) for _, start in spans]}}


def _answers(row: Mapping[str, Any]) -> Any:
    """``answers``, or where they are empty ``answer`` with its ``answer_start``.

    Raises:
        RowError: there is neither.
    """
    if "answers" not in row and "answer" not in row:
        raise RowError("It has neither answers nor answer; give an empty list to questions without an answer.")
    answers, answer, start = map(row.get, ("answers", "answer", "answer_start"))
    if not _is_empty(answers) or _is_empty(answer):
        return answers
    if start is not None and not isinstance(answer, Mapping):
        return {"text": answer, "answer_start": start}
    return answer if isinstance(answer, (Mapping, list)) else [answer]


def _is_empty(answer: Any) -> bool:
    """Whether an answer, or each of several, is missing or without text; SQuAD 2 is also written with such answers."""
    if isinstance(answer, Mapping) and ("text" in answer or not answer):
        answer = answer.get("text")
    return all(map(_is_empty, answer)) if isinstance(answer, list) else answer is None or not str(answer).strip()


def _searched(row: Mapping[str, Any], answers: Any) -> dict[str, Any]:
    """One text or several, searched for in the context; none for a question without an answer."""
    texts = [str(answer) for answer in (answers if isinstance(answers, list) else [answers]) if not _is_empty(answer)]
    spans = occurrences(_text(row, "context"), texts)
    if texts and not spans["text"]:
        raise RowError(f"The answer {texts[0]!r} is not in the context; give words of the context.")
    return {"answers": spans, "gold": texts}


def _mrqa(row: Mapping[str, Any]) -> dict[str, Any]:
    """MRQA 2019: context, question, detected_answers {text, char_spans}, answers (the texts to score against)."""
    context, detected = _text(row, "context"), row["detected_answers"]
    if isinstance(detected, dict):
        detected = [dict(zip(detected, values, strict=True)) for values in zip(*detected.values(), strict=True)]
    spans = [(start, end) for answer in detected for start, end in _spans(answer["char_spans"]) if context[start : end + 1].strip()]
    answers: dict[str, list[Any]] = {
        "text": [context[start : end + 1] for start, end in spans],
        "answer_start": [start for start, _ in spans],
    }
    return {"id": row.get("qid"), "answers": answers, "gold": list(row.get("answers") or answers["text"])}


def _spans(spans: Any) -> list[tuple[int, int]]:
    """MRQA's spans as pairs. Files have lists, the Hub has a dictionary of lists."""
    return list(zip(spans["start"], spans["end"], strict=True)) if isinstance(spans, dict) else [(span[0], span[1]) for span in spans]


def _hotpot(row: Mapping[str, Any]) -> dict[str, Any]:
    """HotpotQA: answer (a span, yes or no), context [[title, sentences]], supporting_facts [[title, sentence]]; or the Hub's columns."""
    paragraphs, facts = row["context"], row["supporting_facts"] or []
    if isinstance(paragraphs, dict):
        paragraphs = zip(paragraphs["title"], paragraphs["sentences"], strict=True)
    pairs = zip(facts["title"], facts["sent_id"], strict=True) if isinstance(facts, dict) else facts
    supporting = {(title, index) for title, index in pairs}
    context, inside = "", []  # characters of the supporting sentences
    for title, texts in paragraphs:
        context += f"{title}\n"
        for index, text in enumerate(texts):
            if (title, index) in supporting:
                start = len(context) + len(text) - len(text.lstrip())
                inside.append(range(start, start + len(text.strip())))
            context += text
        context += "\n"
    answer, example = row.get("answer"), {"id": row.get("_id", row.get("id")), "context": context}
    if answer in ("yes", "no"):
        return {**example, "answers": {"text": [], "answer_start": []}, "kind": answer, "gold": [answer]}
    if not answer:  # a test set
        return {**example, "answers": {"text": [], "answer_start": []}}
    spans = occurrences(context, [answer])
    near = [at for at in spans["answer_start"] if any(at in sentence for sentence in inside)]
    if near:  # only occurrences in supporting sentences count
        places = [place for place, start in enumerate(spans["answer_start"]) if start in near]
        spans = {name: [values[place] for place in places] for name, values in spans.items()}
    if not spans["text"]:
        raise RowError(f"The answer {answer!r} is not in the context; give words of the context.")
    return {**example, "answers": spans, "gold": [answer]}


class Schema(NamedTuple):
    """A schema: the columns that identify it, and the function that converts a row."""

    name: str
    columns: frozenset[str]
    convert: Callable[[Mapping[str, Any]], dict[str, Any]]


SCHEMAS = (
    Schema("common", frozenset({"question", "context", "answers", "gold", "kind"}), _common),
    Schema("HotpotQA", frozenset({"question", "answer", "context", "supporting_facts"}), _hotpot),
    Schema("MRQA", frozenset({"question", "context", "detected_answers"}), _mrqa),
    Schema("SQuAD", frozenset({"question", "context", "answers"}), _squad),
    Schema("plain", frozenset({"question", "context", "answer"}), _squad),
)
"""Asked in this order."""
OTHERS = {
    frozenset({"question", "answer", "entity_pages", "search_results"}): "the columns of TriviaQA; write it in the common schema first, "
    "with prepare_triviaqa.py in the scripts of a clone",
    frozenset({"question", "document", "annotations"}): "the columns of Natural Questions; write them in the common schema first, with "
    "prepare_natural_questions.py in the scripts of a clone",
}
"""Columns of unsupported data -> the message, with what to do."""


def recognised(columns: Iterable[str], name: str) -> Schema:
    """The schema of data with these columns.

    Raises:
        DataError: none fits.
    """
    present = set(columns)
    for schema in SCHEMAS:
        if schema.columns <= present:
            return schema
    for columns, what in OTHERS.items():
        if columns <= present:
            raise DataError(f"{name} has {what}.")
    closest = max(SCHEMAS[::-1], key=lambda schema: len(schema.columns & present) / len(schema.columns))
    missing = sorted(closest.columns - present)
    raise DataError(
        f"{name} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))} of the schema {closest.name!r} "
        f"({', '.join(sorted(closest.columns))}); it has {', '.join(sorted(present)) or 'no columns'}."
    )


_WITH_PROBLEM = Features({**EXAMPLE, "problem": Value("string")})


def _convert(schema: Schema, row: Mapping[str, Any], number: int, *, in_json: bool = False) -> dict[str, Any]:
    """The example of a row of a table, or of JSON in the column ``row``. For a bad row, an empty one with the reason in ``problem``."""
    row = json.loads(row["row"]) if in_json else row
    common = {"id": row.get("id"), "title": row.get("title"), "context": row.get("context"), "question": row.get("question")}
    empty: dict[str, Any] = {**dict.fromkeys(("title", "context", "question", "document"), ""), "answers": {"text": [], "answer_start": []}}
    empty |= {"kind": "none", "gold": []}
    try:
        example = {**common, "problem": "", "kind": "span", **schema.convert(row if in_json else _read_cells(row))}
        name = str(number if example["id"] is None else example["id"])
        _text(example, "question")
        _text(example, "context")
        gold = [str(text) for text in example.get("gold", ()) if not _is_empty(text)] or example["answers"]["text"]
        kind = "none" if example["kind"] == "span" and not gold else example["kind"]
        mark = row.get("is_impossible")
        impossible = MARKS.get("" if mark is None else str(mark).strip().lower(), mark)
        if impossible not in (True, False, None):
            raise RowError(f"Its is_impossible must be true or false, not {mark!r}.")
        if gold and (impossible or kind == "none"):
            marked = "is_impossible" if impossible else "kind 'none'"
            raise RowError(f"It is marked as {marked}, but has the answer {gold[0]!r}; correct one of the two.")
        if kind == "none" and impossible is False:
            raise RowError("Its is_impossible is false, but it has no answer; correct one of the two.")
        title = example["title"] if isinstance(example["title"], str) else ""
        example = {**empty, **example, "kind": kind, "gold": gold, "id": name, "title": title}
        json.dumps(example, ensure_ascii=False).encode()
    except (RowError, KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        mismatch = f"It does not match the schema of {schema.name} ({type(error).__name__}: {error})."
        half = "It has half of a character, a \\u escape from d800 to dfff without the other half."
        why = str(error) if isinstance(error, RowError) else half if isinstance(error, UnicodeEncodeError) else mismatch
        named = next((f"Question {row[key]}" for key in IDS if row.get(key) is not None), f"Row {number + 1}")
        return {**empty, "id": str(number), "problem": f"{named}: {why}".encode(errors="backslashreplace").decode()}
    return example


def _text(row: Mapping[str, Any], column: str) -> str:
    if not isinstance(row[column], str):
        raise RowError(f"The {column} must be one text, not {type(row[column]).__name__}.")
    return row[column]


def _checked(rows: Dataset, name: str, skip_bad_rows: bool) -> Dataset:
    """The rows that can be used.

    Raises:
        DataError: no row can be used, or some cannot and ``skip_bad_rows`` is False.
    """
    problems = list(rows["problem"])
    bad = [problem for problem in problems if problem]
    if bad:
        what = "documents" if any(rows["document"]) else "questions"
        subject = f"{len(bad):,} of {len(rows):,} {what} of {name} cannot be used"
        first_problems = f"{' '.join(bad[:SHOWN])}{' …' if len(bad) > SHOWN else ''}"
        if len(bad) == len(rows) or not skip_bad_rows:
            advice = "correct them" if len(bad) == len(rows) else "correct them, or leave them out with --skip-bad-rows"
            raise DataError(f"{subject}; {advice}. {first_problems}")
        logger.warning(f"{subject} and are left out. {first_problems}")
        rows = rows.select([place for place, problem in enumerate(problems) if not problem])
    if not any(question.strip() for question in rows["question"]):
        raise DataError(f"All questions of {name} are empty; check its column 'question'.")
    return rows.remove_columns("problem")


def _nested(values: Iterable[Any], name: str) -> Iterator[dict[str, Any]]:
    """The questions of the values of a JSON file: articles (SQuAD), in a list or under ``data``, documents (MRQA), or rows.

    Raises:
        DataError: a value is none of these, or a paragraph has no list of questions.
    """
    for entry in values:
        try:
            if not isinstance(entry, dict) or ("data" in entry and "question" not in entry and not isinstance(entry["data"], list)):
                raise DataError(f"{name!r} must hold a list of examples, or SQuAD's JSON {{'data': [{{'paragraphs': ...}}]}}.")
            if "question" in entry:
                yield entry
            elif "data" in entry:
                yield from _nested(entry["data"], name)
            elif "paragraphs" in entry:
                for paragraph in entry["paragraphs"]:
                    for qa in paragraph["qas"]:
                        yield {"title": entry.get("title", ""), "context": paragraph.get("context"), "answers": [], **qa}
            elif "qas" in entry:
                for qa in entry["qas"]:
                    yield {"context": entry.get("context"), **qa}
            elif "header" not in entry:  # the first line of an MRQA file
                yield entry
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{name!r} has an article without SQuAD's shape {{'paragraphs': [{{'context': ..., 'qas': [...]}}]}} "
                f"({type(error).__name__}: {error})."
            ) from error


def _read_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table, with ``answers`` and ``answer_start`` read from text."""
    answers, start = row.get("answers"), row.get("answer_start")
    read: dict[str, Any] = {}
    if isinstance(answers, str) and answers.lstrip().startswith(("{", "[")):
        try:
            read["answers"] = json.loads(answers)
        except (ValueError, RecursionError) as error:
            raise RowError(f"Its answers are no JSON ({error}).") from error
    if isinstance(start, str):
        number = as_number(start)
        read["answer_start"] = start if number is None and start else number
    return {**row, **read}
