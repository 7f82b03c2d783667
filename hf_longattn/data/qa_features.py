"""Questions about documents as model inputs, whole or in overlapping windows, and as batches with targets."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from unicodedata import category

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..loading import call_tokenizer
from ..modeling.losses import IGNORED_LABEL
from .batching import packed, pad_rows
from .sources import DataError

INVISIBLE = ("Cc", "Cf", "Zl", "Zp", "Zs")
"""Unicode's categories of control and format characters, such as the zero-width space, and of white space."""
MARKS = ("Mn", "Me")
"""Unicode's categories of marks that are drawn onto the character before. Many tokenizers drop them."""
Offset = tuple[int, int]
"""Start and end character of a token in its document, the end exclusive; (-1, -1) for a token outside the document."""


def qa_inputs(
    examples: Mapping[str, Sequence[Any]],
    numbers: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    stride: int | None,
) -> dict[str, list[Any]]:
    """Model inputs of questions about documents, one for each window of a document.

    Special tokens typed in the texts, such as ``[SEP]``, are read as text.

    Args:
        examples: columns ``question``, ``context`` and ``answers`` (texts and their first characters).
        numbers: numbers of the examples.
        length: maximum number of tokens of an input.
        stride: tokens that consecutive windows share, as in transformers' run_qa; ``None`` = a single input, and the
            rest is cut off.

    Returns:
        The tokenizer's columns; ``starts`` and ``ends``: first and last tokens of all answers in the window, or [0]
        for "no answer";
        ``offsets``: see :data:`Offset`; ``example``: number of the example; ``length``: length in tokens.

    Raises:
        InputError: beside the question, ``length`` leaves too few tokens for the document (no more than the stride).
    """
    questions = [question.lstrip() for question in examples["question"]]
    as_text = {"split_special_tokens": True, "verbose": False}
    beside = max(map(len, call_tokenizer(tokenizer, questions, [""] * len(questions), **as_text)["input_ids"]))
    left = max(0, length - beside)
    if left <= (stride or 0):
        advice = "; shorten the question"
        if left:
            advice = f", not more than the stride {stride}; lower --stride"
        raise InputError(
            f"--max-length {length} leaves {left} tokens for the document beside the question{advice}, or raise "
            "--max-length if the model takes longer inputs."
        )
    settings: dict[str, Any] = {"truncation": "only_second", "max_length": length, "return_offsets_mapping": True}
    if stride is not None:
        settings |= {"stride": stride, "return_overflowing_tokens": True}
    encoded = call_tokenizer(tokenizer, questions, list(examples["context"]), **as_text, **settings)
    owners = encoded.get("overflow_to_sample_mapping", range(len(questions)))
    rows: dict[str, list[Any]] = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
    rows |= {"length": [len(ids) for ids in rows["input_ids"]], "example": [numbers[owner] for owner in owners]}
    rows |= {"offsets": [], "starts": [], "ends": []}
    for window, (owner, spans) in enumerate(zip(owners, encoded["offset_mapping"], strict=True)):
        offsets = [
            span if text == 1 else (-1, -1) for span, text in zip(spans, encoded.sequence_ids(window), strict=True)
        ]
        rows["offsets"].append(offsets)
        starts, ends = zip(*answer_tokens(offsets, examples["answers"][owner]), strict=True)
        rows["starts"].append(sorted(set(starts)))
        rows["ends"].append(sorted(set(ends)))
    return rows


def answer_tokens(offsets: Sequence[Offset], answers: Mapping[str, Sequence[Any]]) -> list[tuple[int, int]]:
    """First and last token of each answer that lies completely in this window. If there is none, [(0, 0)], for "no
    answer".

    They are the tokens that hold the answer's first and last visible character. Most tokenizers have no token for the
    white space around a word.
    """
    inside = [token for token, (start, end) in enumerate(offsets) if 0 <= start < end]
    starts, ends = [offsets[token][0] for token in inside], [offsets[token][1] for token in inside]
    tokens = []
    for text, answer_start in zip(answers["text"], answers["answer_start"], strict=True):
        visible = [place for place, character in enumerate(text) if category(character) not in INVISIBLE] or [0]
        letters = [place for place in visible if category(text[place : place + 1] or " ") not in MARKS] or visible
        first, last, last_letter = (answer_start + place for place in (visible[0], visible[-1], letters[-1]))
        if inside and starts[0] <= first and last_letter < ends[-1]:
            first_token = bisect_right(ends, first)  # the first that ends after this character
            last_token = max(first_token, bisect_right(starts, last) - 1)  # the last that starts before or at it
            tokens.append((inside[first_token], inside[last_token]))
    return tokens or [(0, 0)]


def qa_rows(
    examples: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, stride: int, processes: int = 0
) -> Dataset:
    """The inputs of all examples; see :func:`qa_inputs`. ``processes`` more processes encode them, if above 0."""
    encode = partial(qa_inputs, tokenizer=tokenizer, length=length, stride=stride)
    return examples.map(
        encode,
        with_indices=True,
        batched=True,
        batch_size=100,
        remove_columns=examples.column_names,
        num_proc=processes or None,
    )


def answerable(examples: Dataset) -> Dataset:
    """The examples to train on. Questions without their answer in any of their documents are left out.

    If only another document of the question has the answer (TriviaQA), the target is "no answer", as in a window
    without an answer.
    """
    known = examples.select_columns(["kind", "answers", "id", "document"])
    answered = {row["id"] for row in known if row["document"] and row["answers"]["text"]}
    used = [
        number
        for number, row in enumerate(known)
        if row["kind"] != "span" or row["answers"]["text"] or row["id"] in answered
    ]
    if not used:
        raise DataError(
            "No question has an answer in its document, so there is nothing to learn; give questions with answers."
        )
    return examples.select(used)


@dataclass
class QACollator:
    """Batches of :func:`qa_inputs`: rows padded on the right, or with ``pack`` one row without padding.

    ``labels (B, L, 2)`` are 1 at the first and last tokens of correct answers, :data:`IGNORED_LABEL` at padding, and 0
    elsewhere.
    """

    tokenizer: PreTrainedTokenizerBase
    pack: bool = False

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        lengths = [len(row["input_ids"]) for row in features]
        labels = torch.full((len(lengths), max(lengths), 2), IGNORED_LABEL, dtype=torch.int8)
        for target, row, length in zip(labels, features, lengths, strict=True):
            target[:length] = 0
            target[row["starts"], 0] = 1
            target[row["ends"], 1] = 1
        fills = {"input_ids": self.tokenizer.pad_token_id or 0, "token_type_ids": 0}
        rows = [{name: row[name] for name in fills if name in row} for row in features]
        if self.pack:
            return {**packed(rows), "labels": labels}
        inputs = {name: pad_rows([row[name] for row in rows], fills[name], max(lengths)) for name in rows[0]}
        mask = pad_rows([[1] * length for length in lengths], 0, max(lengths))
        return {**inputs, "attention_mask": mask, "labels": labels}
