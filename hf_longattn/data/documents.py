"""Documents with a class, and documents with a summary, as model inputs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_longattn.loading import call_tokenizer


def label_names(*parts: Dataset) -> list[str]:
    """The labels of all parts, sorted; whole numbers by their value."""
    names = {label for part in parts for label in part["label"]}
    numbers = all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names)
    return sorted(names, key=lambda name: (int(name) if numbers else 0, name))


def to_documents(data: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, names: Sequence[str]) -> Dataset:
    """Tokens, as in ``run_classification``, the label's number, and ``document`` (tokens before it was cut).

    A text with a ``question`` follows it, as in ``run_glue``; the longer of the two is cut.
    """
    numbers = {name: number for number, name in enumerate(names)}
    has_questions = "question" in data.column_names

    def encode(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts = (rows["question"], rows["text"]) if has_questions else (rows["text"],)
        columns = {"return_token_type_ids": None, "split_special_tokens": True} if has_questions else {"return_token_type_ids": False}
        columns["return_attention_mask"] = False
        cut = {"truncation": True, "max_length": length}
        encoded = call_tokenizer(tokenizer, *texts, **columns, **cut)
        counts = {row: len(ids) for row, ids in enumerate(encoded["input_ids"])}
        if full := [row for row, count in counts.items() if count == length]:
            uncut = call_tokenizer(tokenizer, *([part[row] for row in full] for part in texts), **columns, verbose=False)
            counts |= {row: len(ids) for row, ids in zip(full, uncut["input_ids"], strict=True)}
        return {**encoded, "labels": [numbers[label] for label in rows["label"]], "document": list(counts.values())}

    return data.map(encode, batched=True, batch_size=200, remove_columns=data.column_names)


def to_summaries(data: Dataset, tokenizer: PreTrainedTokenizerBase, prefix: str, length: int, summary_length: int | None) -> Dataset:
    """Tokens of documents after ``prefix`` and of summaries, as in ``run_summarization``, both cut to what fits."""

    def encode(rows: dict[str, list[str]]) -> dict[str, Any]:
        documents = call_tokenizer(tokenizer, [prefix + text for text in rows["document"]], truncation=True, max_length=length)["input_ids"]
        labels = call_tokenizer(tokenizer, text_target=rows["summary"], truncation=True, max_length=summary_length)["input_ids"]
        return {"input_ids": documents, "labels": labels}

    return data.map(encode, batched=True, batch_size=100, remove_columns=data.column_names)
