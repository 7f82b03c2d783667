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
"""Unicode's categories of white space, and of control and format characters such as the zero-width space."""
MARKS = ("Mn", "Me")
"""Unicode's categories of marks, such as accents, that are drawn onto the character before them. Many tokenizers drop
marks."""
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
        examples: columns ``question``, ``context`` and ``answers`` (``text`` and ``answer_start``, the index of the
            first character).
        numbers: numbers of the examples.
        length: maximum number of tokens of an input.
        stride: tokens that consecutive windows share, as in transformers' run_qa. ``None`` = only the first window,
            and the rest of the document is cut off.

    Returns:
        Columns with a value for each window: those of the tokenizer, ``length`` (number of tokens), ``example``
        (number of the example), ``offsets`` (an :data:`Offset` for each token), ``starts`` and ``ends`` (the first
        and the last tokens of all answers in the window, or [0] for "no answer").

    Raises:
        InputError: with the question, ``length`` leaves no more tokens for the document than the stride.
    """
    questions = [question.lstrip() for question in examples["question"]]
    as_text = {"split_special_tokens": True, "verbose": False}

    # Tokens that the longest question leaves for its document
    without_document = call_tokenizer(tokenizer, questions, [""] * len(questions), **as_text)["input_ids"]
    left = max(0, length - max(map(len, without_document)))
    if left <= (stride or 0):
        advice = "; shorten the question"
        if left:
            advice = f", not more than the stride {stride}; lower --stride"
        raise InputError(
            f"--max-length {length} leaves {left} tokens for the document beside the question{advice}, or raise "
            "--max-length if the model takes longer inputs."
        )

    # Windows. The owner of a window is the index of its example.
    settings: dict[str, Any] = {"truncation": "only_second", "max_length": length, "return_offsets_mapping": True}
    if stride is not None:
        settings |= {"stride": stride, "return_overflowing_tokens": True}
    encoded = call_tokenizer(tokenizer, questions, list(examples["context"]), **as_text, **settings)
    owners = encoded.get("overflow_to_sample_mapping", range(len(questions)))
    rows: dict[str, list[Any]] = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
    rows["length"] = [len(ids) for ids in rows["input_ids"]]
    rows["example"] = [numbers[owner] for owner in owners]

    # Targets
    rows |= {"offsets": [], "starts": [], "ends": []}
    for window, (owner, spans) in enumerate(zip(owners, encoded["offset_mapping"], strict=True)):
        texts = encoded.sequence_ids(window)  # 1 = the token is in the document
        offsets = [span if text == 1 else (-1, -1) for span, text in zip(spans, texts, strict=True)]
        rows["offsets"].append(offsets)
        starts, ends = zip(*answer_tokens(offsets, examples["answers"][owner]), strict=True)
        rows["starts"].append(sorted(set(starts)))
        rows["ends"].append(sorted(set(ends)))
    return rows


def answer_tokens(offsets: Sequence[Offset], answers: Mapping[str, Sequence[Any]]) -> list[tuple[int, int]]:
    """Index of the first and of the last token of each answer that lies completely in a window.

    If there is no such answer, the result is [(0, 0)], which means "no answer". The tokens contain the first and the
    last visible character of the answer, because most tokenizers have no token for the white space around a word.

    Args:
        offsets: an :data:`Offset` for each token of the window.
        answers: ``text``, and ``answer_start``, the index of the first character in the document.
    """
    inside = [token for token, (start, end) in enumerate(offsets) if 0 <= start < end]
    starts = [offsets[token][0] for token in inside]
    ends = [offsets[token][1] for token in inside]
    tokens = []
    for text, answer_start in zip(answers["text"], answers["answer_start"], strict=True):
        # Indices of characters: in the answer, and then in the document
        visible = [index for index, character in enumerate(text) if category(character) not in INVISIBLE] or [0]
        letters = [index for index in visible if category(text[index : index + 1] or " ") not in MARKS] or visible
        first, last = answer_start + visible[0], answer_start + visible[-1]
        last_letter = answer_start + letters[-1]
        if inside and starts[0] <= first and last_letter < ends[-1]:
            first_token = bisect_right(ends, first)  # the first token that ends after the first character
            last_token = bisect_right(starts, last) - 1  # the last token that starts at or before the last character
            tokens.append((inside[first_token], inside[max(first_token, last_token)]))
    return tokens or [(0, 0)]


def qa_rows(
    examples: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, stride: int, processes: int = 0
) -> Dataset:
    """The inputs of all examples; see :func:`qa_inputs`.

    ``processes`` is the number of processes that encode the examples; 0 = this process does.
    """
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
    """The examples to train on: questions whose answer is in one of their documents, or is no span.

    A question of TriviaQA has an example for each of its documents. Examples whose document lacks the answer are kept
    if another document of the question has it. Their target is "no answer", as in a window without an answer.
    """
    columns = examples.select_columns(["kind", "answers", "id", "document"])
    answered_ids = {row["id"] for row in columns if row["document"] and row["answers"]["text"]}
    used = [
        number
        for number, row in enumerate(columns)
        if row["kind"] != "span" or row["answers"]["text"] or row["id"] in answered_ids
    ]
    if not used:
        raise DataError(
            "No question has an answer in its document, so there is nothing to learn; give questions with answers."
        )
    return examples.select(used)


@dataclass
class QACollator:
    """Collator for rows of :func:`qa_inputs`. Rows are padded on the right, or with ``pack`` joined to one row.

    ``labels (B, L, 2)`` are 1 at the first tokens ([…, 0]) and at the last tokens ([…, 1]) of correct answers,
    :data:`IGNORED_LABEL` at padding, and 0 elsewhere. They are not packed.
    """

    tokenizer: PreTrainedTokenizerBase
    pack: bool = False

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch ``(B, L)``, or ``(1, T)`` if it is packed, with ``labels``."""
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
