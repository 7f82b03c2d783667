"""Questions about documents: SQuAD 1 and 2 (nested or flat), MRQA, HotpotQA, and rows of ``question``, ``context`` and
``answers``.

If the data give no position for an answer, every occurrence in the document is an answer (distant supervision, Joshi
et al. 2017; Clark & Gardner 2018).
"""

from __future__ import annotations

import ast
import json
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unicodedata import category, normalize

from datasets import Dataset, Features, List, Value

from ..errors import listed
from ..names import logger
from .rows import as_number, chosen_columns
from .sources import DataError, read_table

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
WRITTEN = re.compile(r"\s*([\[{]\s*['\"{]|\[\s*\]\s*$)")
"""Matches the text of a list of answers, or of a dictionary with answers."""


def load_qa(
    source: str | Path,
    split: str | None = None,
    *,
    named: Mapping[str, str] = MappingProxyType({}),
    skip_bad_rows: bool = False,
) -> Dataset:
    """Read questions, documents and answers.

    Args:
        source: see :func:`.sources.read_table`. If ``answers`` is empty, ``answer`` is used, with or without
            ``answer_start``. An empty answer means that the question has no answer.
        split: which split, if the source has several.
        named: id, question, context or answers -> its column, if that has another name.
        skip_bad_rows: leave out rows that cannot be used, with a warning.

    Returns:
        A dataset with the columns of :data:`EXAMPLE`: ``answers`` {text, answer_start} are all correct spans of
        ``context``, ``gold`` the texts to score against, ``kind`` one of :data:`KINDS`. A question about several
        documents (TriviaQA) has one example for each ``document``, with the question's ``id``.

    Raises:
        DataError: missing file, unknown split, unknown columns, nothing to read, or rows that cannot be used.
    """
    name = str(source)
    data = read_table(name, split, flat=_questions)
    if named:
        chosen_columns(data.column_names, dict.fromkeys(named, ()), named, name)
        data = data.remove_columns(
            [role for role in named if role in data.column_names and role not in named.values()]
        )
        data = data.rename_columns({column: role for role, column in named.items()})
    present = set(data.column_names)
    missing = sorted({"question", "context"} - present)
    if not present & {"answers", "answer", "detected_answers"}:
        missing.append("answers")
    if missing:
        raise DataError(
            f"{name} has the columns {listed(present, 12)}, and lacks {' and '.join(missing)}; name a column with "
            f"--columns {missing[0]}=NAME, or give questions as SQuAD, MRQA or HotpotQA, "
            "or rows of question, context and answers (for TriviaQA and Natural Questions, scripts/ of a clone has a "
            "program each)."
        )

    def convert(columns: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        examples = []
        for number, *cells in zip(numbers, *columns.values(), strict=True):
            row = dict(zip(columns, cells, strict=True))
            ids = (row.get(key) for key in ("id", "_id", "qid", "question_id"))
            identity = next((str(each) for each in ids if each is not None), "")
            try:
                examples.append(_example(row, identity or str(number)))
            except (DataError, KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
                if skip_bad_rows:
                    continue
                why = str(error)
                if not isinstance(error, DataError):
                    why = f"It matches no schema ({type(error).__name__}: {error})."
                where = f"Question {identity}" if identity else f"Row {number + 1}"
                raise DataError(
                    f"{where} of {name}: {why} Leave such rows out, with --skip-bad-rows if there are many."
                ) from error
        return {column: [example[column] for example in examples] for column in EXAMPLE}

    rows = data.map(
        convert, with_indices=True, batched=True, batch_size=100, remove_columns=data.column_names, features=EXAMPLE
    )
    if len(rows) < len(data):
        logger.warning(
            f"{len(data) - len(rows):,} of {len(data):,} questions of {name} cannot be used and are left out."
        )
    if not any(question.strip() for question in rows["question"]):
        raise DataError(f"All questions of {name} are empty or cannot be used; check its column 'question'.")
    return rows


def _questions(value: Any) -> Iterator[dict[str, Any]]:
    """The questions in a JSON value: articles under ``data`` (SQuAD), a document (MRQA), or a single row."""
    if not isinstance(value, dict) or "question" in value:
        yield value
        return
    articles = value.get("data")
    for entry in articles if isinstance(articles, list) else [value]:
        if "header" in entry:  # the first line of an MRQA file
            continue
        for paragraph in entry.get("paragraphs", [entry] if "qas" in entry else ()):
            shared = {"title": entry.get("title", ""), "context": paragraph.get("context"), "answers": []}
            yield from ({**shared, **qa} for qa in paragraph["qas"])
        if not {"paragraphs", "qas"} & entry.keys():
            yield entry


def _example(row: Mapping[str, Any], identity: str) -> dict[str, Any]:
    if "supporting_facts" in row:
        row = _hotpot(row)
    for column in ("question", "context"):
        if not isinstance(row[column], str):
            raise DataError(f"The {column} must be one text, not {type(row[column]).__name__}.")
    answers, gold = _mrqa(row) if "detected_answers" in row else _squad(row)
    if row.get("gold") is not None:  # the common schema
        gold = row["gold"]
    gold = [text for text, _ in _spans(list(gold))] or answers["text"]
    kind = row.get("kind") or "span"
    if kind not in KINDS:
        raise DataError(f"The kind must be one of {', '.join(KINDS)}, not {kind!r}.")
    if kind == "span" and not gold:
        kind = "none"
    impossible = str(row.get("is_impossible")).strip().lower() in ("true", "yes", "1", "1.0")
    if gold and (impossible or kind == "none"):
        reason = "is_impossible" if impossible else "kind 'none'"
        raise DataError(f"It is marked as {reason}, but has the answer {gold[0]!r}; correct one of the two.")
    title, document = (value if isinstance(value, str) else "" for value in (row.get("title"), row.get("document")))
    return {
        "id": identity,
        "title": title,
        "document": document,
        "question": row["question"],
        "context": row["context"],
        "answers": answers,
        "gold": gold,
        "kind": kind,
    }


def _spans(answers: Any) -> list[tuple[str, Any]]:
    """Text and start (a character index, or ``None``) of each answer that is not empty.

    ``answers``: texts, or {text, answer_start} with one value or a list of values each.
    """
    if isinstance(answers, list):
        return [span for each in answers for span in _spans(each)]
    if answers is None:
        return []
    if not isinstance(answers, Mapping):
        return [(str(answers), None)] if str(answers).strip() else []
    texts, starts = (value if isinstance(value, list) else [value] for value in map(answers.get, ANSWERS))
    if answers and "text" not in answers:
        raise DataError(
            f"The answers must be {{text: [...], answer_start: [...]}} as in SQuAD, or texts, not {answers!r}."
        )
    if not any(map(_spans, texts)) or all(start is None for start in starts):
        return _spans(texts)
    return [(str(text), start) for text, start in zip(texts, starts, strict=True) if _spans(text)]


def _unwritten(answers: Any, context: str) -> Any:
    """Answers that a cell of a table holds as JSON or as Python text, which pandas writes. Others are unchanged.

    Raises:
        DataError: the text is Python, but not of plain lists and dictionaries.
    """
    if not isinstance(answers, str) or not WRITTEN.match(answers) or answers.strip() in context:
        return answers
    try:
        return json.loads(answers)
    except json.JSONDecodeError:
        pass
    try:
        return ast.literal_eval(answers.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise DataError(
            f"The answers are the text {answers!r:.60}, as pandas writes arrays into a CSV; write rows as JSON lines: "
            "frame.to_json('data.jsonl', orient='records', lines=True)."
        ) from None


def _squad(row: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """The spans and texts of ``answers``, or of ``answer`` and ``answer_start``; see :func:`_spans`."""
    spans = _spans(_unwritten(row.get("answers"), row["context"]))
    if not spans:
        answer, start = row.get("answer"), row.get("answer_start")
        if not isinstance(answer, (Mapping, list)) and start not in (None, ""):
            answer = {"text": answer, "answer_start": start}
        spans = _spans(answer)
    right = [text for text, _ in spans]
    if all(start is None for _, start in spans):
        answers = occurrences(row["context"], right)
        if right and not answers["text"]:
            raise DataError(f"The answer {right[0]!r} is not in the context; give words of the context.")
        return answers, right
    for text, start in spans:
        number = as_number(start)
        if number is None or not number.is_integer() or number < 0:
            raise DataError(
                f"The answer {text!r} has the answer_start {start!r}; it must be a whole number from 0, the answer's "
                "first character in the context. Give empty lists to questions without an answer."
            )
        if not row["context"].startswith(text, int(number)):
            raise DataError(f"The answer {text!r} is not at character {start}; correct its answer_start.")
    return {"text": right, "answer_start": [int(float(start)) for _, start in spans]}, []


def _mrqa(row: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """MRQA 2019: detected_answers {text, char_spans}, and answers, the texts to score against. The Hub has
    dictionaries of lists."""
    context, detected, characters = row["context"], row["detected_answers"], list[tuple[int, int]]()
    spans = detected["char_spans"] if isinstance(detected, dict) else [answer["char_spans"] for answer in detected]
    for each in spans:
        characters += zip(each["start"], each["end"], strict=True) if isinstance(each, dict) else each
    filled = [(start, context[start : end + 1]) for start, end in characters if context[start : end + 1].strip()]
    answers = {"text": [text for _, text in filled], "answer_start": [start for start, _ in filled]}
    return answers, list(row.get("answers") or [])


def _hotpot(row: Mapping[str, Any]) -> dict[str, Any]:
    """HotpotQA: paragraphs [[title, sentences]], an answer (a span, yes or no) and supporting_facts [[title,
    sentence]], or the Hub's columns. Occurrences in the supporting sentences take precedence."""
    paragraphs, facts, answer = row["context"], row["supporting_facts"] or [], row.get("answer")
    if isinstance(paragraphs, dict):
        paragraphs = zip(paragraphs["title"], paragraphs["sentences"], strict=True)
    if isinstance(facts, dict):
        facts = zip(facts["title"], facts["sent_id"], strict=True)
    supporting = set(map(tuple, facts))
    context = ""
    inside = []  # characters of the supporting sentences
    for title, sentences in paragraphs:
        context += f"{title}\n"
        for index, sentence in enumerate(sentences):
            if (title, index) in supporting:
                inside.append(range(len(context), len(context) + len(sentence)))
            context += sentence
        context += "\n"
    example = {"question": row["question"], "context": context}
    if answer in ("yes", "no"):
        return {**example, "kind": answer, "gold": [answer]}
    anywhere = occurrences(context, [answer or ""])
    spans = [
        {"text": text, "answer_start": start}
        for text, start in zip(anywhere["text"], anywhere["answer_start"], strict=True)
        if any(start in sentence for sentence in inside)
    ]
    return {**example, "answers": spans or answer, "gold": [answer or ""]}


ARTICLES = re.compile(r"\b(a|an|the)\b")
MOST_MATCHES = 64
"""Maximum occurrences of an answer that distant supervision takes from one document."""
UNSPACED = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u1950-\u1aaf\u2e80-\u312f\u3190-\ua4cf\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
"""A character of a script without spaces between words, such as Thai, Tibetan, Burmese, Khmer, kana and Chinese
characters."""
_NOTHING = str.maketrans("", "", string.punctuation)
_SPACES = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))


def normalised_alias(text: str) -> str:
    """Lower case, single spaces instead of punctuation, no articles: TriviaQA's normalisation."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(_SPACES)).split())


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces: SQuAD's normalisation."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(_NOTHING)).split())


def occurrences(context: str, texts: Iterable[str], *, normalised: bool = False) -> dict[str, list[Any]]:
    """Occurrences of ``texts`` in ``context``, in SQuAD's form: as whole words, or else anywhere.

    In scripts without spaces, every occurrence counts. Case, type of space and Unicode normalisation form do not
    matter. With ``normalised``, only whole words count, and punctuation and articles between them are ignored, as in
    TriviaQA's script.
    """
    gap = r"[\W_]{1,4}(?:(?:an?|the)[\W_]{1,4})?" if normalised else r"\s+"
    lowered = normalize("NFD", context.lower())
    if normalised:
        texts = set(map(normalised_alias, texts))
    patterns = []
    for text in texts:
        words = text.split()
        if words and all(normalize("NFD", word.lower()) in lowered for word in words):  # most aliases do not occur
            forms = [{word, normalize("NFC", word), normalize("NFD", word)} for word in words]
            patterns.append(
                re.compile(gap.join(f"(?:{'|'.join(map(re.escape, word))})" for word in forms), re.IGNORECASE)
            )
    text_by_start: dict[int, str] = {}
    for anywhere in (False, True):
        for pattern in patterns:
            match = pattern.search(context)
            while match is not None:
                start, end = match.span()
                if anywhere or not (_goes_on(context, start, -1) or _goes_on(context, end - 1, 1)):
                    text_by_start[start] = max(text_by_start.get(start, ""), match.group(), key=len)
                else:
                    end = start + 1
                match = pattern.search(context, end)
        if text_by_start or normalised:
            break
    starts = sorted(text_by_start)[:MOST_MATCHES]
    return {"text": [text_by_start[start] for start in starts], "answer_start": starts}


def _goes_on(context: str, position: int, step: int) -> bool:
    """Whether the word at a position extends to the next character (step 1) or the previous one (step -1)."""
    if not 0 <= position + step < len(context):
        return False
    here, there = context[position], context[position + step]
    later = here if step < 0 else there
    if category(later).startswith("M"):  # a mark belongs to the character before it
        return True
    in_word = there.isalnum() or there == "_" or category(there).startswith("M")
    return in_word and UNSPACED.match(here) is None and UNSPACED.match(there) is None
