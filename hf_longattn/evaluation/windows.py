"""Windows of a text that is longer than the input of a model, and the window to which each token belongs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

Spans = list[tuple[int, int]]
"""Start and end of each window in the text, in characters, the end exclusive."""


class ReadDict(dict[str, Any]):
    """A dictionary that was computed from a text, and the windows of the text."""

    windows: Spans


class ReadList(list[Any]):
    """A list that was computed from a text, and the windows of the text."""

    windows: Spans


class ReadScore(float):
    """A number that was computed from a text, and the windows of the text."""

    windows: Spans


def with_windows(result: Any, spans: Spans) -> Any:
    """A copy of ``result`` (a dictionary, a list or a number) with ``spans`` as its attribute ``windows``."""
    read: Any = {dict: ReadDict, list: ReadList, float: ReadScore}[type(result)](result)
    read.windows = spans
    return read


def token_windows(count: int, size: int, shared: int) -> Iterator[tuple[int, int, int]]:
    """Windows of ``size`` tokens of a text of ``count`` tokens. Two neighbours have ``shared`` tokens in common.

    Each token belongs to one window: the window in which it is further from the edges.

    Yields:
        Three indices of tokens for each window: its first token, and ``begin`` and ``end``. The tokens that belong to
        the window are ``begin … end - 1``.
    """
    for first in range(0, max(count, 1), max(size - shared, 1)):
        begin = first + (shared + 1) // 2 if first else 0
        if first + size >= count:
            yield first, begin, count
            return
        yield first, begin, first + size - shared // 2


@dataclass(frozen=True)
class Windows:
    """The windows of a text as inputs of a model. n is the number of tokens of the longest window.

    Attributes:
        inputs: arguments of the model, ``(windows, n)``, padded on the right.
        offsets: start and end of each token in the text, in characters, ``(windows, n, 2)``.
        in_text: True for tokens of the text, False for special tokens, padding and a second text, ``(windows, n)``.
        owned: True for tokens that belong to the window, ``(windows, n)``. Over all windows, each token of the text
            and each special token before and after it is True once.
        first: index in the text of the first token of each window.
        shared: number of tokens of the text that two neighbours have in common.
    """

    inputs: dict[str, Tensor]
    offsets: Tensor
    in_text: Tensor
    owned: Tensor
    first: list[int]
    shared: int

    @property
    def spans(self) -> Spans:
        """Start and end of each window in the text, in characters."""
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
    """The windows of ``text``, each with a second text ``beside`` (a question or hypothesis) that is never cut.

    Args:
        tokenizer: a tokenizer that cuts on the right.
        beside: the second text; ``None`` = there is none.
        limit: maximum tokens of a window, with special tokens and ``beside``.
        stride: tokens of ``text`` that two windows share. At most half of the tokens of ``text`` in a window.
        called: name of ``beside`` in messages.
        is_second: whether ``text`` comes after ``beside``.
        spared: number of tokens that all windows leave free.

    Raises:
        InputError: ``beside`` leaves no room for ``text``.
    """
    # Texts are given in lists: outside of a list, a tokenizer would ignore an empty second text.
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

    # Which tokens are of the text, and which of them belong to which window?
    rows = [encoded.sequence_ids(window) for window in range(len(encoded["input_ids"]))]
    in_text = torch.tensor([[number == int(is_second) for number in row] for row in rows])
    size = int(in_text[0].sum())
    count = int(in_text.sum()) - stride * (len(rows) - 1)
    first, begin, end = torch.tensor([*token_windows(count, size, stride)])[..., None].unbind(1)  # each (windows, 1)
    seen = in_text.cumsum(1)  # number of tokens of the text up to here, 0 before the text
    token = first + seen - 1  # index in the text
    window = torch.arange(len(rows))[:, None]
    # Special tokens before the text belong to the first window, and those after it to the last window.
    special_owned = torch.where(seen == 0, window == 0, window == len(rows) - 1)
    owned = torch.where(in_text, (begin <= token) & (token < end), special_owned) & encoded["attention_mask"].bool()
    inputs = {name: encoded[name] for name in tokenizer.model_input_names if name in encoded}
    return Windows(inputs, encoded["offset_mapping"], in_text, owned, first[:, 0].tolist(), stride)
