"""Read questions about documents in several schemas.

They are SQuAD 1 and 2 (nested or flat), MRQA, HotpotQA, and rows with the columns ``question``, ``context`` and
``answers``. If the data give only the text of an answer, every occurrence of the text in the document is an answer
(distant supervision, Joshi et al. 2017; Clark & Gardner 2018).
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
"""The columns of the rows that :func:`load_qa` returns."""
KINDS = ("span", "yes", "no", "none")
"""Kinds of answers: spans of the document, yes, no, or no answer."""
WRITTEN = re.compile(r"\s*([\[{]\s*['\"{]|\[\s*\]\s*$)")
"""Matches the beginning of a list or a dictionary of answers that is written as text."""


def load_qa(
    source: str | Path,
    split: str | None = None,
    *,
    named: Mapping[str, str] = MappingProxyType({}),
    skip_bad_rows: bool = False,
) -> Dataset:
    """Read questions, documents and answers.

    Args:
        source: see :func:`.sources.read_table`. If the column ``answers`` is empty, ``answer`` is read, with
            ``answer_start`` if it exists. An empty answer means that the question has no answer.
        split: the split to read, if the source has several.
        named: role ("id", "question", "context" or "answers") -> name of its column, if the names differ.
        skip_bad_rows: leave out rows that cannot be used, with a warning.

    Returns:
        A dataset with the columns of :data:`EXAMPLE`. ``answers`` are all correct spans of ``context``: ``text``, and
        ``answer_start`` (index of the first character). ``gold`` are the texts with which an answer is compared, and
        ``kind`` is one of :data:`KINDS`. A question about several documents (TriviaQA) has an example for each
        ``document``, all with the question's ``id``.

    Raises:
        DataError: missing file, unknown split, unknown columns, nothing to read, or rows that cannot be used.
    """
    name = str(source)
    data = read_table(name, split, flat=_questions)

    # Columns
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
            f"--columns {missing[0]}=NAME, or give questions as SQuAD, MRQA or HotpotQA, or rows of question, context "
            "and answers (for TriviaQA and Natural Questions, scripts/ of a clone has a program each)."
        )

    # Rows
    def convert(columns: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        """Some rows in the columns of :data:`EXAMPLE`. ``numbers`` are their numbers in the data."""
        examples = []
        for number, *cells in zip(numbers, *columns.values(), strict=True):
            row = dict(zip(columns, cells, strict=True))
            ids = [row[key] for key in ("id", "_id", "qid", "question_id") if row.get(key) is not None]
            identity = str(ids[0]) if ids else ""
            try:
                examples.append(_example(row, identity or str(number)))
            # a row of an unknown schema raises any of these
            except (DataError, KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
                if skip_bad_rows:
                    continue
                problem = str(error)
                if not isinstance(error, DataError):
                    problem = f"It matches no schema ({type(error).__name__}: {error})."
                where = f"Question {identity}" if identity else f"Row {number + 1}"
                raise DataError(
                    f"{where} of {name}: {problem} Leave such rows out, with --skip-bad-rows if there are many."
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
    """The rows of questions in a JSON value.

    The value has articles under ``data`` (SQuAD), or is a document with questions (MRQA), or a single row.
    """
    if not isinstance(value, dict) or "question" in value:
        yield value
        return
    articles = value.get("data")
    if not isinstance(articles, list):
        articles = [value]
    for article in articles:
        if "header" in article:  # the first line of an MRQA file
            continue
        if not {"paragraphs", "qas"} & article.keys():  # a row
            yield article
            continue
        for paragraph in article.get("paragraphs", [article]):  # MRQA has no paragraphs
            shared = {"title": article.get("title", ""), "context": paragraph.get("context"), "answers": []}
            for question in paragraph["qas"]:
                yield {**shared, **question}


def _example(row: Mapping[str, Any], identity: str) -> dict[str, Any]:
    """A row of any schema as a row of :data:`EXAMPLE`. ``identity`` is the id of the question."""
    if "supporting_facts" in row:
        row = _hotpot(row)
    for column in ("question", "context"):
        if not isinstance(row[column], str):
            raise DataError(f"The {column} must be one text, not {type(row[column]).__name__}.")

    # Spans, and texts with which an answer is compared
    if "detected_answers" in row:
        answers, gold = _mrqa(row)
    else:
        answers, gold = _squad(row)
    if row.get("gold") is not None:  # the row has the columns of EXAMPLE
        gold = row["gold"]
    gold = [text for text, _ in _spans(list(gold))] or answers["text"]

    # Kind
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
    """Text and start (index of the first character, or ``None``) of each answer that is not empty.

    ``answers`` is a text, a dictionary with ``text`` and ``answer_start``, each with one value or a list, or a list of
    such answers.
    """
    if isinstance(answers, list):
        return [span for answer in answers for span in _spans(answer)]
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


def _parsed(answers: Any, context: str) -> Any:
    """Answers that a cell of a table has as text: JSON, or the Python that pandas writes. Others are unchanged.

    A text that occurs in the document is an answer, even if it looks like JSON.

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
    """The spans of a row's answers as in SQuAD, and their texts if the row gives no positions.

    The answers are in ``answers``, or else in ``answer`` and ``answer_start``.
    """
    spans = _spans(_parsed(row.get("answers"), row["context"]))
    if not spans:
        answer, start = row.get("answer"), row.get("answer_start")
        if not isinstance(answer, (Mapping, list)) and start not in (None, ""):
            answer = {"text": answer, "answer_start": start}
        spans = _spans(answer)
    texts = [text for text, _ in spans]

    # Without positions: all occurrences
    if all(start is None for _, start in spans):
        answers = occurrences(row["context"], texts)
        if texts and not answers["text"]:
            raise DataError(f"The answer {texts[0]!r} is not in the context; give words of the context.")
        return answers, texts

    # With positions
    for text, start in spans:
        number = as_number(start)
        if number is None or not number.is_integer() or number < 0:
            raise DataError(
                f"The answer {text!r} has the answer_start {start!r}; it must be a whole number from 0, the answer's "
                "first character in the context. Give empty lists to questions without an answer."
            )
        if not row["context"].startswith(text, int(number)):
            raise DataError(f"The answer {text!r} is not at character {start}; correct its answer_start.")
    return {"text": texts, "answer_start": [int(float(start)) for _, start in spans]}, []


def _mrqa(row: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """The spans of a row of MRQA 2019, and its ``answers``, the texts with which an answer is compared.

    ``detected_answers`` is a list of answers, whose ``char_spans`` are pairs of first and last character. The Hub has
    dictionaries of lists in place of both lists.
    """
    context, detected = row["context"], row["detected_answers"]
    if isinstance(detected, dict):
        answer_spans = detected["char_spans"]
    else:
        answer_spans = [answer["char_spans"] for answer in detected]
    texts, starts = [], []
    for spans in answer_spans:
        if isinstance(spans, dict):
            spans = zip(spans["start"], spans["end"], strict=True)
        for start, end in spans:
            text = context[start : end + 1]
            if text.strip():
                texts.append(text)
                starts.append(start)
    return {"text": texts, "answer_start": starts}, list(row.get("answers") or [])


def _hotpot(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of HotpotQA as a row of the simple schema.

    A row has paragraphs [[title, sentences]] as ``context``, ``supporting_facts`` [[title, number of a sentence]], and
    an ``answer``: a text of the paragraphs, yes or no. The Hub has dictionaries of lists in place of these lists. If
    the answer occurs in the supporting sentences, other occurrences are ignored.
    """
    paragraphs, facts, answer = row["context"], row["supporting_facts"] or [], row.get("answer")
    if isinstance(paragraphs, dict):
        paragraphs = zip(paragraphs["title"], paragraphs["sentences"], strict=True)
    if isinstance(facts, dict):
        facts = zip(facts["title"], facts["sent_id"], strict=True)
    supporting = set(map(tuple, facts))
    context = ""
    supporting_ranges = []  # indices of the characters of supporting sentences
    for title, sentences in paragraphs:
        context += f"{title}\n"
        for number, sentence in enumerate(sentences):
            if (title, number) in supporting:
                supporting_ranges.append(range(len(context), len(context) + len(sentence)))
            context += sentence
        context += "\n"
    example = {"question": row["question"], "context": context}
    if answer in ("yes", "no"):
        return {**example, "kind": answer, "gold": [answer]}
    found = occurrences(context, [answer or ""])
    spans = [
        {"text": text, "answer_start": start}
        for text, start in zip(found["text"], found["answer_start"], strict=True)
        if any(start in sentence for sentence in supporting_ranges)
    ]
    return {**example, "answers": spans or answer, "gold": [answer or ""]}


ARTICLES = re.compile(r"\b(a|an|the)\b")
MOST_MATCHES = 64
"""Maximum number of answers in one document for a question whose data give no positions."""
UNSPACED = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u1950-\u1aaf\u2e80-\u312f\u3190-\ua4cf\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
"""Matches a character of a script without spaces between words, such as Thai, Tibetan, Burmese, Khmer, kana and
Chinese characters."""
_PUNCTUATION_TO_NOTHING = str.maketrans("", "", string.punctuation)
_PUNCTUATION_TO_SPACES = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))


def normalised_alias(text: str) -> str:
    """A text in TriviaQA's normalisation: lower case, spaces instead of punctuation, no articles, single spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION_TO_SPACES)).split())


def normalise(text: str) -> str:
    """A text in SQuAD's normalisation: lower case, no punctuation, no articles, single spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION_TO_NOTHING)).split())


def occurrences(context: str, texts: Iterable[str], *, normalised: bool = False) -> dict[str, list[Any]]:
    """The occurrences of ``texts`` in ``context``, as ``text`` and ``answer_start`` (index of the first character).

    Whole words are searched first. If there are none, parts of words count as well. In scripts without spaces, every
    occurrence counts as a whole word. Case, kinds of white space and Unicode normalisation forms do not matter.

    Args:
        normalised: as in TriviaQA's script, only whole words count, and punctuation and articles between words are
            ignored.
    """
    # A pattern for each text
    gap = r"\s+"
    if normalised:
        gap = r"[\W_]{1,4}(?:(?:an?|the)[\W_]{1,4})?"
        texts = set(map(normalised_alias, texts))
    lowered = normalize("NFD", context.lower())
    patterns = []
    for text in texts:
        words = text.split()
        if words and all(normalize("NFD", word.lower()) in lowered for word in words):  # most aliases do not occur
            word_forms = [{word, normalize("NFC", word), normalize("NFD", word)} for word in words]
            expression = gap.join(f"(?:{'|'.join(map(re.escape, forms))})" for forms in word_forms)
            patterns.append(re.compile(expression, re.IGNORECASE))

    # The longest match at each start
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
    """Whether the word at a position extends to the next character (``step`` 1) or to the previous one (-1)."""
    if not 0 <= position + step < len(context):
        return False
    character, neighbour = context[position], context[position + step]
    later = character if step < 0 else neighbour
    if category(later).startswith("M"):  # a mark belongs to the character before it
        return True
    in_word = neighbour.isalnum() or neighbour == "_" or category(neighbour).startswith("M")
    return in_word and UNSPACED.match(character) is None and UNSPACED.match(neighbour) is None
