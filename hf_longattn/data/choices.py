"""Questions with choices. Each choice is read with the document (RACE, SWAG), or all choices with all documents (WikiHop)."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_longattn.constants import LOGGER
from hf_longattn.data.qa_features import pad_lists
from hf_longattn.data.qa_markers import CANDIDATE, CANDIDATES, END_CANDIDATE, marked_question, plain
from hf_longattn.data.sources import DataError, check_column, named_columns, read_source
from hf_longattn.errors import LengthError

logger = logging.get_logger(LOGGER)
COLUMNS = {
    "context": ("context", "article", "sent1", "ctx"),
    "question": ("question", "sent2", "question_stem"),
    "choices": ("choices", "options", "endings"),
    "label": ("label", "answer", "answerKey"),
}
"""Names of columns that are taken without being named: plain data, RACE, SWAG, HellaSwag, ARC, CommonsenseQA and OpenBookQA."""
CHOICES = Features({"context": Value("string"), "question": Value("string"), "choices": List(Value("string")), "label": Value("int64")})
"""What :func:`read_choices` returns."""
JOINT = Features(
    {
        **{name: Value("string") for name in ("id", "question")},
        **{name: List(Value("string")) for name in ("candidates", "supports")},
        "label": Value("int64"),
    }
)
"""What :func:`read_qangaroo` returns."""
QANGAROO = {"query", "candidates", "supports"}
"""Columns of WikiHop and MedHop."""
LEAST_TEXT = 16
"""Minimum tokens of documents beside question and candidates. Untuned."""
_BEFORE, _AFTER = re.compile(r" (?=[.,!?)]|'s\b)"), re.compile(r"(?<=\() ")


def is_qangaroo(data: Dataset) -> bool:
    """Whether data have the columns of WikiHop."""
    return set(data.column_names) >= QANGAROO


def read_joint(source: str, split: str, named: Mapping[str, Any] | None = None) -> Dataset:
    """WikiHop, or any data of :func:`read_choices`, in the columns of :func:`read_qangaroo`."""
    if not any((named or {}).values()) and is_qangaroo(read_source(source, split)):
        return read_qangaroo(source, split)
    return from_choices(read_choices(source, split, named, varied=True))


def read_qangaroo(source: str, split: str) -> Dataset:
    """WikiHop or MedHop: id, query, candidates, supports, and answer, the text of a candidate.

    Returns:
        A dataset with the columns id, question, candidates, supports and label, the answer's number.

    Raises:
        DataError: a missing column, too few candidates, or an answer that is not a candidate.
    """
    data = read_source(source, split)
    missing = sorted({*QANGAROO, "answer"} - set(data.column_names))
    if missing:
        raise DataError(f"{source} lacks the column {missing[0]!r} of WikiHop's schema; it has {', '.join(data.column_names)}; rename one.")

    def convert(row: dict[str, Any], number: int) -> dict[str, Any]:
        candidates, supports = row["candidates"], row["supports"]
        for name, value in (("candidates", candidates), ("supports", supports)):
            if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
                raise DataError(f"Row {number + 1} of {source}: {name} must be a list of texts, not {value!r}.")
        if len(candidates) < 2 or row["answer"] not in candidates:
            raise DataError(f"Row {number + 1} of {source}: the answer {row['answer']!r} is none of its {len(candidates)} candidates.")
        name, label = str(row.get("id", number + 1)), candidates.index(row["answer"])
        return {"id": name, "question": str(row["query"]), "candidates": candidates, "supports": supports, "label": label}

    if not len(data):
        raise DataError(f"There are no questions in {source}; give a file with at least one.")
    return data.map(convert, with_indices=True, remove_columns=data.column_names, features=JOINT)


def from_choices(data: Dataset) -> Dataset:
    """Questions of :func:`read_choices` in the columns of :func:`read_qangaroo`; the context is the only document."""

    def convert(row: dict[str, Any], number: int) -> dict[str, Any]:
        supports = [row["context"]] if row["context"] else []
        return {"id": str(number), "question": row["question"], "candidates": row["choices"], "supports": supports, "label": row["label"]}

    return data.map(convert, with_indices=True, remove_columns=data.column_names, features=JOINT)


def read_choices(source: str, split: str, named: Mapping[str, Any] | None = None, *, varied: bool = False) -> Dataset:
    """Questions with the columns context, question, choices and label, a number.

    Args:
        named: role -> column, for columns that are not among :data:`COLUMNS`. The choices have a list: one column with all choices, or a
            column for each.

    Raises:
        DataError: a missing column, labels that name no choice or may name two, or (unless ``varied``) different numbers of choices.
    """
    data = read_source(source, split)
    named = dict(named or {})
    endings = list(named.pop("choices", ())) or sorted(
        name for name in data.column_names if name.startswith("ending") and name[6:].isdigit()
    )
    if len(endings) == 1:
        named["choices"] = endings.pop()
    for name in endings:
        check_column(data, name, source, "--choices-column")
    columns = named_columns(data, COLUMNS, named, source)
    missing = [role for role in ("choices", "label") if role not in columns and not (role == "choices" and endings)]
    if missing or not {"context", "question"} & set(columns):
        what = missing[0] if missing else "context"
        raise DataError(
            f"{source} has no column for {what} ({', '.join(COLUMNS[what])}); its columns are {', '.join(data.column_names)}; name one "
            f"with --{what}-column."
        )
    texts_of = {role: columns[role] for role in ("context", "question") if role in columns}
    if not len(data):
        raise DataError(f"There are no questions in {source}; give a file with at least one.")

    def named_choices(row: dict[str, Any], number: int) -> tuple[list[str], list[str] | None]:
        """The choices of a row, and their keys in ARC and CommonsenseQA: A B C … or 1 2 3 …"""
        choices = [row[name] for name in endings] if endings else row[columns["choices"]]
        keys = choices.get("label") if isinstance(choices, dict) else None
        choices = choices.get("text") if isinstance(choices, dict) else choices
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
            raise DataError(f"Row {number + 1} of {source}: the choices must be at least two texts, not {choices!r}.")
        return choices, keys

    answers = data.select_columns([columns["label"], *(endings or [columns["choices"]])])
    labels = _numbers([(row[columns["label"]], *named_choices(row, number)) for number, row in enumerate(answers)], source)

    def convert(row: dict[str, Any], number: int) -> dict[str, Any]:
        where = f"Row {number + 1} of {source}"
        texts: dict[str, Any] = {"context": "", "question": ""}
        texts |= {role: row[column] or "" for role, column in texts_of.items()}
        wrong = next((role for role, text in texts.items() if not isinstance(text, str)), None)
        if wrong is not None:
            raise DataError(f"{where}: {columns[wrong]!r} must be a text, not {texts[wrong]!r}.")
        return {**texts, "choices": named_choices(row, number)[0], "label": labels[number]}

    questions = data.map(convert, with_indices=True, remove_columns=data.column_names, features=CHOICES)
    if not varied and len({len(choices) for choices in questions["choices"]}) > 1:
        raise DataError(
            f"The questions of {source} have different numbers of choices; give --candidates joint, or fill them up with empty texts."
        )
    return questions


def _readings(label: Any, choices: Sequence[str], keys: Sequence[str] | None) -> dict[str, int]:
    """Number of the choice that a label names by key, letter, number or text; -1: none."""
    text = label.strip() if isinstance(label, str) else ""
    number = int(label) if isinstance(label, int) or text.isdecimal() else -1
    return {
        "keys": keys.index(label) if keys and label in keys else -1,
        "letters": string.ascii_uppercase[: len(choices)].find(text.upper()) if len(text) == 1 else -1,
        "numbers": number if number < len(choices) else -1,
        "texts": choices.index(label) if label in choices else -1,
    }


def _numbers(rows: Sequence[tuple[Any, Sequence[str], Sequence[str] | None]], source: str) -> list[int]:
    """The number of the right choice of each row. All labels are keys, all are letters, all are numbers, or all are texts.

    Args:
        rows: label, choices, and the choices' keys if they have some.

    Raises:
        DataError: a label that names no choice, labels of several kinds, or numbers that may be texts of other choices.
    """
    readings = [_readings(*row) for row in rows]
    for number, (reading, (label, choices, _)) in enumerate(zip(readings, rows, strict=True)):
        if max(reading.values()) < 0:
            raise DataError(
                f"Row {number + 1} of {source}: the label {label!r} is none of its {len(choices)} choices; give a number from 0, a letter "
                "or the text."
            )
    kinds = [kind for kind in readings[0] if all(reading[kind] >= 0 for reading in readings)]
    if not kinds:
        raise DataError(f"The labels of {source} are of several kinds; give all rows a number from 0, a letter, or the text of a choice.")
    kind = kinds[0]
    doubtful = next((row for row, reading in enumerate(readings) if reading[kind] != reading[kinds[-1]]), None)
    if doubtful is not None and kind in ("letters", "numbers"):
        doubt = f"The labels of {source} are {kind} or texts: in row {doubtful + 1}, {rows[doubtful][0]!r} names two different choices"
        if kind == "numbers":
            raise DataError(f"{doubt}; store the labels as integers from 0.")
        logger.warning(f"{doubt}. They are read as letters, A for the first choice; if they are texts, store integers from 0.")
    return [reading[kind] for reading in readings]


def to_choices(data: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, *, question_first: bool = False) -> Dataset:
    """A row per question, with lists of a row per choice: the document, then question and choice, as in ``run_swag``; cut to what fits.

    Args:
        question_first: question and choice, then the document, which alone is cut. For models that make the first text global.
    """

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        choices = [f"{row['question']} {choice}" if row["question"] else choice for choice in row["choices"]]
        documents = [row["context"]] * len(choices)
        texts = [choices] if not row["context"] else [choices, documents] if question_first else [documents, choices]
        cut = "only_second" if row["context"] and question_first else "longest_first"
        encoded = tokenizer(*texts, truncation=cut, max_length=length)
        longest = max(map(len, encoded["input_ids"]))
        return {**encoded, "labels": row["label"], "length": longest, "tokens": longest * len(choices)}

    return data.map(encode, remove_columns=data.column_names)


def tidy(text: str) -> str:
    """WikiHop's text without the spaces before punctuation."""
    return _AFTER.sub("", _BEFORE.sub("", " ".join(text.split())))


def encode_candidates(
    example: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, length: int, *, truncate: bool = False
) -> tuple[list[dict[str, list[int]]], list[int]]:
    """The inputs of a question without padding, and the token of each candidate, the same in all inputs.

    Args:
        example: question, candidates, supports.
        length: of the longest input.
        truncate: only the first input.

    Raises:
        LengthError: question and candidates leave no tokens for documents.
    """
    candidates = [f"{CANDIDATE} {plain(tidy(text), CANDIDATES)} {END_CANDIDATE}" for text in example["candidates"]]
    first = " ".join([marked_question(tidy(example["question"])), *candidates])
    separator = tokenizer.sep_token or tokenizer.eos_token or ""
    documents = f" {separator} ".join(plain(tidy(text), CANDIDATES) for text in example["supports"])
    count = len(tokenizer(first, "")["input_ids"])
    if count + (LEAST_TEXT if documents else 0) > length:
        raise LengthError(
            f"A question and its {len(candidates)} candidates take {count} tokens, which leaves {max(0, length - count)} of {length} for "
            "documents; convert the model to a greater length, or raise --max-length."
        )
    encoded = tokenizer(
        first, documents, truncation="only_second", max_length=length, return_overflowing_tokens=True, return_attention_mask=False
    )
    marker = tokenizer.convert_tokens_to_ids(CANDIDATE)
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    inputs = [{name: list(encoded[name][window]) for name in names} for window in range(len(encoded["input_ids"]))]
    places = [place for place, number in enumerate(inputs[0]["input_ids"]) if number == marker]
    return inputs[:1] if truncate else inputs, places


def to_candidates(data: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, *, truncate: bool = False) -> Dataset:
    """A row per question: lists with an entry per input, ``places`` (the token of each candidate), ``labels``, ``length`` (all inputs')."""

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        inputs, places = encode_candidates(row, tokenizer, length, truncate=truncate)
        columns = {name: [window[name] for window in inputs] for name in inputs[0]}
        return {**columns, "places": places, "labels": row["label"], "length": sum(len(window["input_ids"]) for window in inputs)}

    return data.map(encode, remove_columns=data.column_names)


class CandidateCollator:
    """Collates the inputs of all questions of a batch as rows ``(W, L)``. Adds ``owners (W,)``, the question of each row,
    ``places (Q, C)``, padded with -1, and ``labels (Q,)``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        names = [name for name in ("input_ids", "token_type_ids") if name in features[0]]
        rows = [{name: row[name][window] for name in names} for row in features for window in range(len(row["input_ids"]))]
        owners = [number for number, row in enumerate(features) for _ in row["input_ids"]]
        batch = dict(self.tokenizer.pad(rows, padding_side="right", return_tensors="pt"))
        places = pad_lists([row["places"] for row in features], -1)
        return {**batch, "owners": torch.tensor(owners), "places": places, "labels": torch.tensor([row["labels"] for row in features])}
