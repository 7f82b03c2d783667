"""Questions about documents as rows of a dataset, and as batches."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_longattn.data.batching import DataCollatorWithGlobals, packed
from hf_longattn.data.qa_features import QAEncodingConfig, encode_qa, pad_lists
from hf_longattn.data.sources import DataError
from hf_longattn.errors import LengthError

TARGETS = ("starts", "ends", "lengths", "real")
"""Columns of a batch that the loss takes, and not the model."""


def training_features(
    examples: Dataset, tokenizer: PreTrainedTokenizerBase, encoding: QAEncodingConfig, long_documents: str, *, document_start: bool = False
) -> Dataset:
    """Model inputs to train on; see :func:`to_features`. Questions are left out if no document contains their known answers. If another
    document of the question has them (TriviaQA), the target here is "no answer", as in a window without an answer. With
    ``long_documents="truncate"``, questions whose answers are cut off are left out.

    Raises:
        LengthError: a document is longer than an input, and ``long_documents`` is ``"refuse"``.
        DataError: nothing is left.
    """
    known = examples.select_columns(["kind", "answers", "id", "document"])
    answered = {row["id"] for row in known if row["document"] and row["answers"]["text"]}
    used = [place for place, row in enumerate(known) if row["kind"] != "span" or row["answers"]["text"] or row["id"] in answered]
    rows = to_features(examples.select(used), tokenizer, encoding, document_start=document_start)
    if encoding.stride is None and long_documents == "truncate":
        rows = rows.select([place for place, cut in enumerate(rows["answer_cut"]) if not cut])
    rows = rows.remove_columns("answer_cut")
    if long_documents == "refuse" and len(rows) > len(used):
        raise LengthError(
            f"{len(rows) - len(used):,} more inputs than questions: documents are longer than {encoding.max_length} tokens; give "
            "--long-documents windows to read them in overlapping windows, or convert the model to a greater length."
        )
    if not len(rows):
        raise DataError("No question has an answer in its document, so there is nothing to learn; give questions with answers.")
    return rows


def to_features(
    examples: Dataset, tokenizer: PreTrainedTokenizerBase, encoding: QAEncodingConfig, *, document_start: bool = False
) -> Dataset:
    """Model inputs of examples, one for each window of a document.

    Returns:
        A dataset with the tokenizer's columns, ``global_attention_mask`` if ``encoding`` asks for it, ``starts`` and ``ends`` (all correct
        tokens; [0] = no answer here), ``length`` (tokens), ``answer_cut``, and with ``document_start`` the document's first token.
    """

    def encode(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {}
        for number in range(len(rows["question"])):
            example = {name: values[number] for name, values in rows.items()}
            for feature in encode_qa(example, tokenizer, encoding):
                row = {
                    **feature.inputs,
                    **feature.targets(),
                    "length": len(feature),
                    "answer_cut": bool(example["answers"]["text"]) and feature.spans == [(0, 0)],
                    **({"document_start": feature.document_start} if document_start else {}),
                }
                for name, value in row.items():
                    columns.setdefault(name, []).append(value)
        return columns

    return examples.map(encode, batched=True, batch_size=100, remove_columns=examples.column_names)


class QACollator(DataCollatorWithGlobals):
    """Batches of question-answering inputs: padded rows, or with ``pack`` one row without padding; the targets beside them are padded."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, pack: bool = False) -> None:
        super().__init__(tokenizer)
        self.pack = pack

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> dict[str, Any]:
        """The model's inputs; starts (B, K), ends (B, M); packed, also lengths (B,)."""
        rows = [{name: value for name, value in row.items() if name not in ("length", "answer_cut")} for row in features]
        targets: dict[str, Tensor] = {name: pad_lists([row.pop(name) for row in rows]) for name in ("starts", "ends") if name in rows[0]}
        if self.pack:
            return {**packed(rows), **targets, "lengths": torch.tensor([len(row["input_ids"]) for row in rows])}
        return {**super().__call__(rows), **targets}
