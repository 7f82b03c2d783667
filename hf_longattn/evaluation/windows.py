"""Windows of a text that is longer than a model's input, and the window that each token belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

Spans = list[tuple[int, int]]
"""First and last character, exclusive, of each window."""


class ReadDict(dict[str, Any]):
    windows: Spans


class ReadList(list[Any]):
    windows: Spans


class ReadScore(float):
    windows: Spans


def with_windows(result: Any, spans: Spans) -> Any:
    """``result`` with an attribute ``windows``."""
    read: Any = {dict: ReadDict, list: ReadList, float: ReadScore}[type(result)](result)
    read.windows = spans
    return read


def token_windows(count: int, size: int, shared: int) -> Iterator[tuple[int, int, int]]:
    """Windows of a text of ``count`` tokens. Each has ``size`` tokens, and shares ``shared`` with the next one.

    Yields:
        The window's first token, and ``begin`` and ``end``: tokens ``begin … end - 1`` belong to it. Each token
        belongs to the window in which it is further from an edge.
    """
    for first in range(0, max(count, 1), max(size - shared, 1)):
        begin = first + (shared + 1) // 2 if first else 0
        if first + size >= count:
            yield first, begin, count
            return
        yield first, begin, first + size - shared // 2


@dataclass(frozen=True)
class Windows:
    """The windows of a text, for a model.

    inputs: what the model takes, ``(windows, n)``, padded.
    offsets: ``(windows, n, 2)``, first and last character of each token in the text.
    in_text: ``(windows, n)`` bool, tokens of the text; others are special ones, padding, or a question.
    owned: ``(windows, n)`` bool, tokens that belong to this window: with special ones at the text's ends, each once.
    first: number of each window's first token in the text.
    shared: tokens of the text that two windows share.
    """

    inputs: dict[str, Tensor]
    offsets: Tensor
    in_text: Tensor
    owned: Tensor
    first: list[int]
    shared: int

    @property
    def spans(self) -> Spans:
        spans = []
        for offsets, in_text in zip(self.offsets, self.in_text, strict=True):
            characters = offsets[in_text].flatten().tolist() or [0, 0]
            spans.append((characters[0], characters[-1]))
        return spans


def text_windows(
    tokenizer: Any,
    text: str,
    beside: str | None,
    *,
    limit: int,
    stride: int,
    called: str = "other text",
    is_second: bool = False,
    spared: int = 0,
) -> Windows:
    """The windows of ``text``, each with the text ``beside``, a question or hypothesis that is never cut.

    Args:
        tokenizer: one that cuts on the right.
        limit: tokens of a window, those beside the text included.
        stride: tokens of the text that two windows share, or half of its tokens in a window, if that is less.
        called: what messages call ``beside``.
        is_second: whether ``text`` stands behind the other one.
        spared: tokens that windows leave free.

    Raises:
        InputError: ``beside`` leaves no room.
    """
    # lists, since a tokenizer drops an empty text beside one that is not in a list
    others = [] if beside is None else [[beside]]
    taken = len(tokenizer(*others, [""], verbose=False)["input_ids"][0]) + spared
    room = limit - taken
    if room < 1:
        raise InputError(
            f"The {called} takes {taken:,} of {limit:,} tokens, which leaves no room for the text; shorten it."
        )
    stride = min(stride, room // 2)
    encoded = tokenizer(
        *([*others, [text]] if is_second else [[text], *others]),
        truncation="only_second" if is_second else "only_first",
        max_length=limit - spared,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=True,
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    rows = [encoded.sequence_ids(window) for window in range(len(encoded["input_ids"]))]
    in_text = torch.tensor([[number == int(is_second) for number in row] for row in rows])
    size = int(in_text[0].sum())
    count = int(in_text.sum()) - stride * (len(rows) - 1)
    first, begin, end = torch.tensor([*token_windows(count, size, stride)])[..., None].unbind(1)
    # numbers of tokens in the text; before it, a special token has seen none of them
    seen = in_text.cumsum(1)
    token = first + seen - 1
    window = torch.arange(len(rows))[:, None]
    at_ends = torch.where(seen == 0, window == 0, window == len(rows) - 1)
    owned = torch.where(in_text, (begin <= token) & (token < end), at_ends) & encoded["attention_mask"].bool()
    inputs = {name: encoded[name] for name in tokenizer.model_input_names if name in encoded}
    return Windows(inputs, encoded["offset_mapping"], in_text, owned, first[:, 0].tolist(), stride)
