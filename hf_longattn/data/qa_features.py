"""A question and a document as model inputs, in training and in inference; and as rows of a dataset and batches.

One function serves the three ways to read a long document: whole (in a long model, with the question's tokens global), cut to the
model's length, or in overlapping windows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_longattn.data.batching import DataCollatorWithGlobals, packed, pad_rows
from hf_longattn.data.sources import DataError
from hf_longattn.errors import InputError
from hf_longattn.loading import call_tokenizer
from hf_longattn.names import LOGGER

logger = logging.get_logger(LOGGER)
TARGETS = ("starts", "ends", "lengths", "real")
"""Columns of a batch that the loss takes, and not the model."""
PADDING = -1
"""Padding of targets with several numbers for each input."""


@dataclass(frozen=True)
class QAEncodingConfig:
    """The encoding of a question and its document as one or several inputs.

    Attributes:
        max_length: longest input in tokens, special tokens included.
        stride: tokens that consecutive windows share, as in transformers' run_qa; None = a single input; the rest is cut off.
        global_question: give ``global_attention_mask``: everything before the document is global.
        max_question_tokens: a longer question is cut, with a warning.
    """

    max_length: int = 512
    stride: int | None = None
    global_question: bool = False
    max_question_tokens: int = 64


@dataclass
class QAFeature:
    """One model input of length L and its origin.

    Attributes:
        inputs: lists of L: input_ids and, where they apply, token_type_ids and global_attention_mask.
        offsets: per token the (start, end) characters in the context; None outside the context.
        spans: first and last token of every correct answer that lies in this input; [(0, 0)], "no answer", without one.
    """

    inputs: dict[str, list[Any]]
    offsets: list[tuple[int, int] | None]
    spans: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def start(self) -> int:
        """The first token of the first answer."""
        return self.spans[0][0]

    @property
    def end(self) -> int:
        """The last token of the first answer."""
        return self.spans[0][1]

    @property
    def document_start(self) -> int:
        """The document's first token."""
        return next((place for place, span in enumerate(self.offsets) if span is not None), len(self))

    def targets(self) -> dict[str, list[int]]:
        """The targets of the loss."""
        return {"starts": sorted({start for start, _ in self.spans}), "ends": sorted({end for _, end in self.spans})}

    def locate(self, example: Mapping[str, Any]) -> list[tuple[int, int]]:
        """First and last token of each answer that lies completely in this input; [(0, 0)] without one."""
        answers = example.get("answers") or {"text": [], "answer_start": []}
        places = [
            (int(start), int(start) + max(1, len(text))) for text, start in zip(answers["text"], answers["answer_start"], strict=True)
        ]
        spans = [span for place in places if (span := self._tokens(place)) is not None]
        return list(dict.fromkeys(spans)) or [(0, 0)]

    def _tokens(self, characters: tuple[int, int]) -> tuple[int, int] | None:
        start, end = token_at(self.offsets, characters[0]), token_at(self.offsets, characters[1] - 1)
        return (start, end) if start >= 0 and end >= 0 else None


def encode_qa(example: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, encoding: QAEncodingConfig) -> list[QAFeature]:
    """Encode one SQuAD-shaped example. A special token that somebody typed, such as ``[SEP]``, is read as text.

    Args:
        example: question, context, and optionally answers.
        tokenizer: a fast tokenizer.
        encoding: whole, cut or in windows.

    Returns:
        One feature, or with ``encoding.stride`` as many windows as the document needs.

    Raises:
        InputError: ``encoding.max_length`` leaves no more tokens than the stride for the document beside the question.
    """
    question = cut_question(example["question"].lstrip(), tokenizer, encoding.max_question_tokens)
    as_text = {"split_special_tokens": True, "verbose": False}
    beside = len(call_tokenizer(tokenizer, question, "", **as_text)["input_ids"])
    left = encoding.max_length - beside
    if left <= (encoding.stride or 0):
        stride = f", not more than the stride {encoding.stride}; lower --stride" if left > 0 else "; lower --max-question-tokens"
        raise InputError(
            f"--max-length {encoding.max_length} leaves {max(0, left)} tokens for the document beside the question{stride}, "
            "or raise --max-length if the model takes longer inputs."
        )
    settings: dict[str, Any] = {
        "truncation": "only_second",
        "max_length": encoding.max_length,
        "stride": encoding.stride or 0,
        "return_overflowing_tokens": encoding.stride is not None,
        "return_offsets_mapping": True,
    }
    encoded = call_tokenizer(tokenizer, question, example["context"], **as_text, **settings)
    if encoding.stride is None:
        encoded = {key: [value] for key, value in encoded.items()} | {"sequence_ids": [encoded.sequence_ids(0)]}
    else:
        sequence_ids = [encoded.sequence_ids(i) for i in range(len(encoded["input_ids"]))]
        encoded = {**encoded, "sequence_ids": sequence_ids}
    return [_feature(example, encoded, index, encoding) for index in range(len(encoded["input_ids"]))]


def pad_features(features: Sequence[QAFeature], pad_token: int) -> dict[str, torch.Tensor]:
    """Pad on the right to the longest: the features' inputs and ``attention_mask``, each ``(B, L)``."""
    length, padding = max(map(len, features)), {"input_ids": pad_token}
    batch = {key: pad_rows([feature.inputs[key] for feature in features], padding.get(key, 0), length) for key in features[0].inputs}
    return {**batch, "attention_mask": pad_rows([[1] * len(feature) for feature in features], 0, length)}


def pad_targets(features: Sequence[QAFeature]) -> dict[str, torch.Tensor]:
    """The padded targets of a batch: distinct ``starts (B, K)`` and ``ends (B, M)``."""
    rows = [feature.targets() for feature in features]
    return {name: pad_lists([row[name] for row in rows]) for name in rows[0]}


def pad_lists(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """``(B, most)`` of rows of different length, padded with :data:`PADDING`."""
    most = max(map(len, rows))
    return torch.tensor([[*row, *[PADDING] * (most - len(row))] for row in rows], dtype=torch.long).view(len(rows), most)


def token_at(offsets: Sequence[tuple[int, int] | None], character: int) -> int:
    """Return the token that contains (or precedes) ``character`` of the context; -1 if it lies outside this input.

    Args:
        offsets: as in :class:`QAFeature`.
        character: counted from the start of the context.
    """
    first, last = 0, len(offsets)
    while first < last and offsets[first] is None:
        first += 1
    while last > first and offsets[last - 1] is None:
        last -= 1
    starts = [span[0] for span in offsets[first:last] if span is not None]
    place = bisect_right(starts, character) - 1
    if place < 0 or (place == len(starts) - 1 and character >= (offsets[last - 1] or (0, 0))[1]):
        return -1
    return first + place


def cut_question(question: str, tokenizer: PreTrainedTokenizerBase, limit: int) -> str:
    """Return the question, or its first ``limit`` tokens with a warning."""
    if len(question) <= limit:
        return question
    settings = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True, "verbose": False}
    offsets = call_tokenizer(tokenizer, question, **settings)["offset_mapping"]
    if len(offsets) <= limit:
        return question
    logger.warning_once(f"Questions of more than {limit} tokens are cut; max_question_tokens (--max-question-tokens) raises the limit.")
    return question[: offsets[limit - 1][1]]


def _feature(example: Mapping[str, Any], encoded: Mapping[str, Any], index: int, encoding: QAEncodingConfig) -> QAFeature:
    sequence_ids = encoded["sequence_ids"][index]
    inputs = {key: list(encoded[key][index]) for key in ("input_ids", "token_type_ids") if key in encoded}
    if encoding.global_question:
        first = next((place for place, sequence in enumerate(sequence_ids) if sequence == 1), len(sequence_ids))
        inputs["global_attention_mask"] = [int(place < first) for place in range(len(sequence_ids))]
    offsets = zip(encoded["offset_mapping"][index], sequence_ids, strict=True)
    feature = QAFeature(inputs, [tuple(span) if sequence == 1 else None for span, sequence in offsets])
    feature.spans = feature.locate(example)
    return feature


def training_features(
    examples: Dataset, tokenizer: PreTrainedTokenizerBase, encoding: QAEncodingConfig, long_documents: str, *, document_start: bool = False
) -> Dataset:
    """Model inputs to train on; see :func:`to_features`. Questions are left out if no document contains their known answers. If another
    document of the question has them (TriviaQA), the target here is "no answer", as in a window without an answer. With
    ``long_documents="truncate"``, questions whose answers are cut off are left out.

    Raises:
        InputError: a document is longer than an input, and ``long_documents`` is ``"refuse"``.
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
        raise InputError(
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
