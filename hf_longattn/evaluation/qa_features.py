"""A question and a document as model inputs, in training and in inference.

One function serves the three ways to read a long document: whole (in a long model, with the question's tokens global), cut to the
model's length, or in overlapping windows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_longattn.errors import LengthError
from hf_longattn.naming import LOGGER

logger = logging.get_logger(LOGGER)


@dataclass(frozen=True)
class QAFormat:
    """How a question and its document become one or several inputs.

    Attributes:
        max_length: longest input in tokens, special tokens included.
        stride: tokens that consecutive windows share, as in transformers' run_qa; None = a single input, the rest cut off.
        global_question: give ``global_attention_mask``: everything before the document is global.
        max_question_tokens: a longer question is cut, with a warning.
    """

    max_length: int = 512
    stride: int | None = None
    global_question: bool = False
    max_question_tokens: int = 64


@dataclass
class QAFeature:
    """One model input of length L and where it came from.

    Attributes:
        inputs: input_ids, and token_type_ids and global_attention_mask where they apply; lists of L.
        offsets: per token the (start, end) characters in the context; None outside the context.
        start, end: first and last token of the answer; (0, 0) if it is not here.
    """

    inputs: dict[str, list[int]]
    offsets: list[tuple[int, int] | None]
    start: int = 0
    end: int = 0

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def document_start(self) -> int:
        """The document's first token."""
        return next((place for place, span in enumerate(self.offsets) if span is not None), len(self))

    def locate(self, record: Mapping[str, Any]) -> tuple[int, int]:
        """Return the first and last token of the record's first answer; (0, 0) if it is not in this input."""
        answers = record.get("answers") or {"text": [], "answer_start": []}
        if not answers["text"]:
            return 0, 0
        begin = int(answers["answer_start"][0])
        start = token_at(self.offsets, begin)
        end = token_at(self.offsets, begin + max(0, len(answers["text"][0]) - 1))
        return (start, end) if start >= 0 and end >= 0 else (0, 0)


def encode_qa(record: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, form: QAFormat) -> list[QAFeature]:
    """Encode one SQuAD-shaped record.

    Args:
        record: question, context, and optionally answers.
        tokenizer: a fast tokenizer.
        form: whole, cut or in windows.

    Returns:
        One feature, or with ``form.stride`` as many windows as the document needs.

    Raises:
        LengthError: ``form.max_length`` leaves no room for the document beside the question.
    """
    question = cut_question(record["question"].strip(), tokenizer, form.max_question_tokens)
    room = form.max_length - len(tokenizer(question, "")["input_ids"])
    if room <= (form.stride or 0):
        raise LengthError(
            f"max_length {form.max_length} leaves {room} tokens for the document beside the question, "
            f"not more than the stride {form.stride or 0}; raise max_length, or lower stride"
        )
    encoded = tokenizer(
        question,
        record["context"],
        truncation="only_second",
        max_length=form.max_length,
        stride=form.stride or 0,
        return_overflowing_tokens=form.stride is not None,
        return_offsets_mapping=True,
        verbose=False,
    )
    if form.stride is None:
        encoded = {key: [value] for key, value in encoded.items()} | {"sequence_ids": [encoded.sequence_ids(0)]}
    else:
        sequence_ids = [encoded.sequence_ids(i) for i in range(len(encoded["input_ids"]))]
        encoded = {**encoded, "sequence_ids": sequence_ids}
    return [_feature(record, encoded, index, form) for index in range(len(encoded["input_ids"]))]


def pad_features(features: Sequence[QAFeature], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pad on the right to the longest: the features' inputs and ``attention_mask``, each ``(B, L)``."""
    length = max(map(len, features))
    batch = {}
    for key in features[0].inputs:
        padding = pad_token_id if key == "input_ids" else 0
        batch[key] = torch.tensor([feature.inputs[key] + [padding] * (length - len(feature)) for feature in features])
    batch["attention_mask"] = torch.tensor([[1] * len(feature) + [0] * (length - len(feature)) for feature in features])
    return batch


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
    offsets = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if len(offsets) <= limit:
        return question
    logger.warning_once(f"Questions of more than {limit} tokens are cut; max_question_tokens (--max-question-tokens) raises the limit.")
    return question[: offsets[limit - 1][1]]


def _feature(record: Mapping[str, Any], encoded: Mapping[str, Any], index: int, form: QAFormat) -> QAFeature:
    sequence_ids = encoded["sequence_ids"][index]
    offsets = [
        tuple(span) if sequence == 1 else None for span, sequence in zip(encoded["offset_mapping"][index], sequence_ids, strict=True)
    ]
    first = next((place for place, sequence in enumerate(sequence_ids) if sequence == 1), len(sequence_ids))
    inputs = {key: list(encoded[key][index]) for key in ("input_ids", "token_type_ids") if key in encoded}
    if form.global_question:
        inputs["global_attention_mask"] = [int(place < first) for place in range(len(sequence_ids))]
    feature = QAFeature(inputs, offsets)
    feature.start, feature.end = feature.locate(record)
    return feature
