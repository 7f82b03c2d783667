"""Questions about documents, from the files and schemas that people have, as records of one schema.

SQuAD 1 and 2 (nested JSON or flat), MRQA, TriviaQA, Natural Questions (Hub and simplified), HotpotQA, and plain ``question``, ``context``,
``answer``. Where the data give answers without their places (TriviaQA, plain answers), every occurrence in the document counts as one
(distant supervision, Joshi et al. 2017; Clark & Gardner 2018).
"""

from __future__ import annotations

import csv
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict, Features, List, Value, load_from_disk
from transformers.utils import logging

from hf_longattn.naming import LOGGER
from hf_longattn.training.data import DataError, choose_split, load_or_refuse

logger = logging.get_logger(LOGGER)

ANSWERS = {"text": List(Value("string")), "answer_start": List(Value("int32"))}
SENTENCE = {"title": Value("string"), "index": Value("int64"), "start": Value("int64"), "end": Value("int64"), "supports": Value("bool")}
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
RECORD = Features(
    {
        **{name: Value("string") for name in ("id", "title", "context", "question")},
        "answers": ANSWERS,
        "gold": List(Value("string")),
        "kind": Value("string"),
        "sentences": List(SENTENCE),
    }
)
"""What :func:`load_qa` returns."""
KINDS = ("span", "yes", "no", "none")
FORMATS = (".json", ".jsonl", ".csv", ".parquet")
MOST_MATCHES = 64
"""Occurrences of an answer that distant supervision takes from one document."""
SHOWN = 3
"""Bad rows that a message quotes."""


class RowError(ValueError):
    """Why one row cannot be used."""


def load_qa(source: str | Path, split: str | None = None, *, skip_bad_rows: bool = False) -> Dataset:
    """Read questions, documents and answers.

    Args:
        source: a ``.json``, ``.jsonl``, ``.csv`` or ``.parquet`` file, a folder written by ``datasets`` (``save_to_disk``), or the name
            of a dataset on the Hub, in one of the schemas of :data:`SCHEMAS`. In a ``.csv`` file, ``answers`` is JSON, or there are
            columns ``answer`` and ``answer_start`` (both empty for a question without an answer), or only ``answer``.
        split: which split, if the source has several.
        skip_bad_rows: leave out rows that cannot be used, with a warning.

    Returns:
        A dataset with the columns of :data:`RECORD`: ``answers`` {text, answer_start} are all correct spans of ``context``, ``gold`` the
        texts to score against, ``kind`` one of :data:`KINDS`; ``sentences`` (HotpotQA) are characters start … end of the context.

    Raises:
        DataError: missing file, unknown split, unknown columns, nothing to read, or rows that cannot be used.
    """
    path, name = Path(source), str(source)
    if path.suffix in FORMATS and not path.exists():
        raise DataError(f"data file {name!r} does not exist; give a {', '.join(FORMATS)} file or a folder written by datasets")
    data: Any
    if path.is_dir():
        data = load_from_disk(name)
    elif path.suffix in (".json", ".jsonl"):
        return _checked(_converted(list(_read_json(path)), name), name, skip_bad_rows)
    elif path.suffix == ".csv":
        return _checked(_converted(list(_read_csv(path)), name), name, skip_bad_rows)
    elif path.suffix == ".parquet":
        data = Dataset.from_parquet(name)
    else:
        kinds = ", ".join(FORMATS)
        data = load_or_refuse(
            name, f"cannot read {name!r}: it is neither a {kinds} file nor a dataset folder, and loading it from the Hub failed"
        )
    if split is None and isinstance(data, DatasetDict) and len(data) == 1:
        split = next(iter(data))
    data = choose_split(data, split, name)
    convert = functools.partial(_convert, recognised(data.column_names, name))
    rows = data.map(convert, with_indices=True, remove_columns=data.column_names, features=_WITH_PROBLEM)
    return _checked(rows, name, skip_bad_rows)


def save_qa(data: Iterable[dict[str, Any]], path: str | Path) -> None:
    """Write records as JSON lines, one question per line."""
    with Path(path).open("w", encoding="utf-8") as file:
        for record in data:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def occurrences(context: str, texts: Iterable[str]) -> dict[str, list[Any]]:
    """Every whole-word occurrence of any of ``texts`` in ``context``, whatever its case and spaces, as SQuAD's answers."""
    found: dict[int, str] = {}
    for text in texts:
        words = [re.escape(word) for word in text.split()]
        for match in re.finditer(r"(?<!\w)" + r"\s+".join(words) + r"(?!\w)", context, re.IGNORECASE) if words else ():
            found[match.start()] = max(found.get(match.start(), ""), match.group(), key=len)
    starts = sorted(found)[:MOST_MATCHES]
    return {"text": [found[start] for start in starts], "answer_start": starts}


def _squad(row: Mapping[str, Any]) -> dict[str, Any]:
    """context, question, answers: {text, answer_start}, or a list of such, or of plain texts."""
    answers: Any = row["answers"]
    if isinstance(answers, str):
        answers = [answers]
    if isinstance(answers, list) and all(isinstance(one, dict) and "text" in one for one in answers):
        answers = {name: [one.get(name) for one in answers] for name in ("text", "answer_start")}
    if isinstance(answers, list) and all(isinstance(one, (str, int, float)) for one in answers):
        return _plain({**row, "answer": answers})
    if not isinstance(answers, dict) or "text" not in answers:
        raise RowError(f"answers must be {{text: [...], answer_start: [...]}} as in SQuAD, not {answers!r}")
    texts: list[Any] = list(answers["text"])
    starts = answers.get("answer_start")
    if starts is None or (texts and all(start is None for start in starts)):
        return _plain({**row, "answer": texts})
    if len(texts) != len(starts):
        raise RowError(f"{len(texts)} answers have {len(starts)} places")
    for text, start in zip(texts, starts, strict=True):
        if start is None or start < 0:
            raise RowError(
                f"the answer {text!r} has answer_start {start}; an answer must be a span of the context, so give yes and no questions in "
                "HotpotQA's schema, and empty lists to questions without an answer"
            )
        if not _text(row, "context").startswith(text, start):
            raise RowError(f"the answer {text!r} is not at character {start}")
    return {"answers": {"text": texts, "answer_start": list(starts)}}


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """context, question, answer: one text or several, searched for in the context; none for a question without an answer."""
    given = row["answer"]
    texts = [str(one) for one in (given if isinstance(given, list) else [given]) if one not in (None, "")]
    answers = occurrences(_text(row, "context"), texts)
    if texts and not answers["text"]:
        raise RowError(f"the answer {texts[0]!r} is not in the context")
    return {"answers": answers, "gold": texts}


def _mrqa(row: Mapping[str, Any]) -> dict[str, Any]:
    """MRQA 2019: context, question, detected_answers {text, char_spans}, answers (the texts to score against)."""
    context, found = _text(row, "context"), row["detected_answers"]
    detected = found if isinstance(found, list) else [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
    spans = [span for one in detected for span in _spans(one["char_spans"])]
    answers: dict[str, list[Any]] = {
        "text": [context[start : end + 1] for start, end in spans],
        "answer_start": [start for start, _ in spans],
    }
    return {"id": row.get("qid"), "answers": answers, "gold": list(row.get("answers") or answers["text"])}


def _spans(given: Any) -> list[tuple[int, int]]:
    """MRQA's spans as pairs: lists on file, a dictionary of lists from the Hub."""
    return list(zip(given["start"], given["end"], strict=True)) if isinstance(given, dict) else [(span[0], span[1]) for span in given]


def _trivia(row: Mapping[str, Any]) -> dict[str, Any]:
    """TriviaQA: answer {value, aliases}; the evidence of entity_pages, or else of search_results, is one document."""
    texts = [text for text in (row.get("entity_pages") or {}).get("wiki_context") or [] if text]
    texts = texts or [text for text in (row.get("search_results") or {}).get("search_context") or [] if text]
    if not texts:
        raise RowError("there is no evidence in entity_pages or search_results")
    context, answer = "\n\n".join(texts), row["answer"]
    gold = list(dict.fromkeys([answer["value"], *(answer.get("aliases") or [])]))
    return {"id": row.get("question_id"), "context": context, "answers": occurrences(context, gold), "gold": gold}


def _natural(row: Mapping[str, Any]) -> dict[str, Any]:
    """Natural Questions: document {tokens {token, is_html}}, question {text}, annotations {short_answers, yes_no_answer}."""
    tokens = row["document"]["tokens"]
    words, markup = list(tokens["token"]), list(tokens["is_html"])
    notes = row["annotations"]
    shorts = [
        (start, end)
        for one in notes["short_answers"]
        for start, end in zip(one["start_token"], one["end_token"], strict=True)
    ]  # fmt: skip
    kinds = [{0: "NO", 1: "YES"}.get(kind, kind) for kind in notes.get("yes_no_answer") or []]
    question = row["question"]["text"] if isinstance(row["question"], dict) else row["question"]
    return {"question": question, "title": row["document"].get("title") or "", **_from_words(words, markup, shorts, kinds)}


def _simplified(row: Mapping[str, Any]) -> dict[str, Any]:
    """Natural Questions, simplified: document_text (tokens between spaces), question_text, annotations [{short_answers, yes_no_answer}]."""
    words = row["document_text"].split(" ")
    markup = [word.startswith("<") and word.endswith(">") for word in words]
    shorts = [(one["start_token"], one["end_token"]) for note in row["annotations"] for one in note["short_answers"]]
    kinds = [note.get("yes_no_answer") for note in row["annotations"]]
    return {"id": row.get("example_id"), "question": row["question_text"], **_from_words(words, markup, shorts, kinds)}


def _from_words(words: list[str], markup: list[bool], shorts: list[tuple[int, int]], kinds: list[Any]) -> dict[str, Any]:
    """Context and answers of a document whose answers are ranges of its words; markup is left out."""
    places, at = [], 0
    for word, hidden in zip(words, markup, strict=True):
        places.append(at)
        at += 0 if hidden else len(word) + 1
    context = " ".join(word for word, hidden in zip(words, markup, strict=True) if not hidden)
    answers: dict[str, list[Any]] = {"text": [], "answer_start": []}
    for start, end in sorted(set(shorts)):
        text = " ".join(word for word, hidden in zip(words[start:end], markup[start:end], strict=True) if not hidden)
        if text:
            answers["text"].append(text)
            answers["answer_start"].append(places[start])
    said = next((kind.lower() for kind in kinds if str(kind).lower() in ("yes", "no")), None)
    if said is not None and not answers["text"]:
        return {"context": context, "answers": answers, "kind": said, "gold": [said]}
    return {"context": context, "answers": answers}


def _hotpot(row: Mapping[str, Any]) -> dict[str, Any]:
    """HotpotQA: answer (a span, yes or no), context [[title, sentences]], supporting_facts [[title, sentence]]; or the Hub's columns."""
    given, facts = row["context"], row["supporting_facts"] or []
    paragraphs = zip(given["title"], given["sentences"], strict=True) if isinstance(given, dict) else given
    pairs = zip(facts["title"], facts["sent_id"], strict=True) if isinstance(facts, dict) else facts
    supporting = {(title, index) for title, index in pairs}
    parts: list[str] = []
    sentences, at = [], 0
    for title, texts in paragraphs:
        parts.append(f"{title}\n")
        at += len(parts[-1])
        for index, text in enumerate(texts):
            place = {"title": title, "index": index, "supports": (title, index) in supporting}
            if text.strip():
                start = at + len(text) - len(text.lstrip())
                sentences.append({**place, "start": start, "end": start + len(text.strip())})
            parts.append(text)
            at += len(text)
        parts.append("\n")
        at += 1
    context, answer = "".join(parts), row.get("answer")
    found: dict[str, Any] = {"id": row.get("_id", row.get("id")), "context": context, "sentences": sentences}
    if answer in ("yes", "no"):
        return {**found, "answers": {"text": [], "answer_start": []}, "kind": answer, "gold": [answer]}
    if not answer:  # a test set
        return {**found, "answers": {"text": [], "answer_start": []}}
    inside = [one for one in sentences if one["supports"]]
    spans = occurrences(context, [answer])
    near = [at for at in spans["answer_start"] if any(one["start"] <= at < one["end"] for one in inside)]
    if near:  # the occurrences in the supporting sentences are those meant
        kept = [place for place, start in enumerate(spans["answer_start"]) if start in near]
        spans = {name: [values[place] for place in kept] for name, values in spans.items()}
    if not spans["text"]:
        raise RowError(f"the answer {answer!r} is not in the context")
    return {**found, "answers": spans, "gold": [answer]}


class Schema(NamedTuple):
    """A shape of data: the columns by which it is recognised, and how a row becomes a record."""

    name: str
    columns: frozenset[str]
    convert: Callable[[Mapping[str, Any]], dict[str, Any]]


SCHEMAS = (
    Schema("HotpotQA", frozenset({"question", "answer", "context", "supporting_facts"}), _hotpot),
    Schema("Natural Questions", frozenset({"document", "question", "annotations"}), _natural),
    Schema("simplified Natural Questions", frozenset({"document_text", "question_text", "annotations"}), _simplified),
    Schema("TriviaQA", frozenset({"question", "answer", "entity_pages"}), _trivia),
    Schema("TriviaQA", frozenset({"question", "answer", "search_results"}), _trivia),
    Schema("MRQA", frozenset({"question", "context", "detected_answers"}), _mrqa),
    Schema("SQuAD", frozenset({"question", "context", "answers"}), _squad),
    Schema("plain", frozenset({"question", "context", "answer"}), _plain),
)
"""Asked in this order."""


def recognised(columns: Iterable[str], name: str) -> Schema:
    """The schema of data with these columns.

    Raises:
        DataError: none fits.
    """
    there = set(columns)
    for schema in SCHEMAS:
        if schema.columns <= there:
            return schema
    closest = max(SCHEMAS[::-1], key=lambda schema: len(schema.columns & there) / len(schema.columns))
    missing = sorted(closest.columns - there)
    raise DataError(
        f"{name} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))} of {closest.name}'s schema "
        f"({', '.join(sorted(closest.columns))}); it has {', '.join(sorted(there)) or 'no columns'}"
    )


_WITH_PROBLEM = Features({**RECORD, "problem": Value("string")})


def _convert(schema: Schema, row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The record of a row, or in ``problem`` why there is none."""
    usual = {"id": row.get("id"), "title": row.get("title"), "context": row.get("context"), "question": row.get("question")}
    empty = {"answers": {"text": [], "answer_start": []}, "gold": [], "kind": "none", "sentences": [], "problem": ""}
    try:
        found = {**usual, **schema.convert(row)}
        _text(found, "question")
        _text(found, "context")
    except (RowError, KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        why = str(error) if isinstance(error, RowError) else f"it has not the shape of {schema.name} ({type(error).__name__}: {error})"
        return {
            **empty,
            "id": str(number),
            "title": "",
            "context": "",
            "question": "",
            "problem": f"question {row.get('id', number)}: {why}",
        }
    found.setdefault("gold", list(found["answers"]["text"]))
    found.setdefault("kind", "span" if found["gold"] else "none")
    found.setdefault("sentences", [])
    title = found["title"] if isinstance(found["title"], str) else ""
    return {**found, "id": str(number if found["id"] is None else found["id"]), "title": title, "problem": ""}


def _text(row: Mapping[str, Any], column: str) -> str:
    if not isinstance(row[column], str):
        raise RowError(f"{column} must be one text, not {type(row[column]).__name__}")
    return row[column]


def _converted(rows: list[dict[str, Any]], name: str) -> Dataset:
    if not rows:
        raise DataError(f"{name} contains no questions")
    columns: set[str] = set().union(*rows)
    schema = recognised(columns, name)
    return Dataset.from_list([_convert(schema, row, number) for number, row in enumerate(rows)], features=_WITH_PROBLEM)


def _checked(rows: Dataset, name: str, skip_bad_rows: bool) -> Dataset:
    """The rows that can be used.

    Raises:
        DataError: there is none, or some cannot be used and ``skip_bad_rows`` is off.
    """
    if not len(rows):
        raise DataError(f"{name} contains no questions")
    problems = rows["problem"]
    bad = [problem for problem in problems if problem]
    if bad:
        told = (
            f"{len(bad):,} of {len(rows):,} questions of {name} cannot be used: {'; '.join(bad[:SHOWN])}{' …' if len(bad) > SHOWN else ''}"
        )
        if len(bad) == len(rows) or not skip_bad_rows:
            raise DataError(f"{told}; correct them" + ("" if len(bad) == len(rows) else ", or leave them out with --skip_bad_rows"))
        logger.warning(f"{told}; they are left out.")
        rows = rows.select([place for place, problem in enumerate(problems) if not problem])
    if not any(question.strip() for question in rows["question"]):
        raise DataError(f"all questions of {name} are empty; check its column 'question'")
    return rows.remove_columns("problem")


def _read_json(path: Path) -> Iterator[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    try:
        lines = [json.loads(line) for line in text.splitlines() if line.strip()] if path.suffix == ".jsonl" else json.loads(text or "[]")
    except json.JSONDecodeError as error:
        raise DataError(f"{str(path)!r} is not valid JSON: {error}") from error
    if isinstance(lines, dict):
        if "Data" in lines:
            raise DataError(
                f"{str(path)!r} is TriviaQA's own JSON, which keeps its documents in other files; give the dataset as the Hub has it "
                "(mandarjoshi/trivia_qa, rc), or Longformer's SQuAD-shaped conversion of it"
            )
        if "data" not in lines:
            raise DataError(f"{str(path)!r} has no 'data' entry; SQuAD's JSON is {{'data': [{{'paragraphs': ...}}]}}")
        lines = lines["data"]
    if lines and isinstance(lines[0], dict) and "header" in lines[0]:  # the first line of an MRQA file
        lines = lines[1:]
    if not isinstance(lines, list) or not all(isinstance(entry, dict) for entry in lines):
        raise DataError(f"{str(path)!r} must hold a list of records, or SQuAD's JSON {{'data': [{{'paragraphs': ...}}]}}")
    for entry in lines:
        yield from _nested(entry)


def _nested(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The questions of an article (SQuAD) or a document (MRQA); anything else is a row itself."""
    if "paragraphs" in entry:
        for paragraph in entry["paragraphs"]:
            for qa in paragraph["qas"]:
                yield {"title": entry.get("title", ""), "context": paragraph["context"], "answers": [], **qa}
    elif "qas" in entry:
        for qa in entry["qas"]:
            yield {"context": entry["context"], **qa}
    else:
        yield entry


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table, with ``answers`` from JSON or from the columns ``answer`` and ``answer_start``."""
    csv.field_size_limit(2**31 - 1)  # documents are long
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            record: dict[str, Any] = {name: value for name, value in row.items() if name}
            try:
                if row.get("answers"):
                    record["answers"] = json.loads(row["answers"])
                elif "answer" in row and "answer_start" in row:
                    found = bool(row["answer"])
                    record["answers"] = {"text": [row["answer"]] * found, "answer_start": [int(row["answer_start"])] if found else []}
            except (ValueError, TypeError) as error:
                raise DataError(f"{str(path)!r}, row {number}: no answer can be read ({error})") from error
            yield record
