"""Documents with a class, and documents with a summary, as model inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_longattn.data.sources import DataError, check_column, read_source


def label_names(*parts: Dataset) -> list[str]:
    """The labels of all parts, sorted; whole numbers by their value."""
    names = {label for part in parts for label in part["label"]}
    numbers = all(name.lstrip("-").isdigit() for name in names)
    return sorted(names, key=lambda name: (int(name) if numbers else 0, name))


def to_documents(data: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, names: Sequence[str]) -> Dataset:
    """Tokens, as in ``run_classification``, the label's number, ``length`` (tokens of the input) and ``document`` (tokens before it was
    cut)."""
    numbers = {name: number for number, name in enumerate(names)}

    def encode(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        documents = tokenizer(rows["text"], return_attention_mask=False, return_token_type_ids=False, verbose=False)["input_ids"]
        long = [row for row, ids in enumerate(documents) if len(ids) > length]
        inputs = list(documents)
        if long:
            texts = [rows["text"][row] for row in long]
            cut = tokenizer(texts, truncation=True, max_length=length, return_attention_mask=False)["input_ids"]
            for row, ids in zip(long, cut, strict=True):
                inputs[row] = ids
        return {
            "input_ids": inputs,
            "labels": [numbers[label] for label in rows["label"]],
            "length": [len(ids) for ids in inputs],
            "document": [len(ids) for ids in documents],
        }

    return data.map(encode, batched=True, batch_size=200, remove_columns=data.column_names)


def read_summaries(source: str, split: str, text_column: str, summary_column: str) -> Dataset:
    """Texts in the columns document and summary; rows in which one is empty are left out.

    Raises:
        DataError: a missing column, or nothing to read.
    """
    data = read_source(source, split)
    columns = {"document": text_column, "summary": summary_column}
    for column, option in ((text_column, "--text-column"), (summary_column, "--summary-column")):
        check_column(data, column, source, option, text=True)
    data = data.filter(lambda row: all((row[name] or "").strip() for name in columns.values()))
    if not len(data):
        raise DataError(f"no row of {source} has both a text in {text_column!r} and one in {summary_column!r}")
    return data.map(lambda row: {role: row[name] for role, name in columns.items()}, remove_columns=data.column_names)


def to_summaries(data: Dataset, tokenizer: PreTrainedTokenizerBase, prefix: str, length: int, summary_length: int) -> Dataset:
    """Tokens of documents after ``prefix`` and of summaries, as in ``run_summarization``, both cut to what fits, and ``length``."""

    def encode(rows: dict[str, list[str]]) -> dict[str, Any]:
        documents = tokenizer([prefix + text for text in rows["document"]], truncation=True, max_length=length)["input_ids"]
        labels = tokenizer(text_target=rows["summary"], truncation=True, max_length=summary_length)["input_ids"]
        return {"input_ids": documents, "labels": labels, "length": [len(ids) for ids in documents]}

    return data.map(encode, batched=True, batch_size=100, remove_columns=data.column_names)
