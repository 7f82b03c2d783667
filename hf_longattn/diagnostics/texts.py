"""Token ids of one text at several lengths, with and without a planted needle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.tokenization import special_ids
from ..errors import CheckpointError, LengthError, OptionError
from ..inputs.text import excerpt, text_of, token_ids

NEEDLE = " The secret number of Lisbon is 7481. "
QUESTION = " What is the secret number of Lisbon? The secret number of Lisbon is"
MAX_FILE_NAME = 200
"""Texts with fewer characters are refused if they are the name of a file."""


@dataclass(frozen=True)
class Needle:
    """A sentence that is planted in the text, and a question about it that ends the text.

    depths: positions at which the sentence is planted, each as the share of the text before it, from 0 to 1.
    """

    text: str = NEEDLE
    question: str = QUESTION
    depths: tuple[float, ...] = (0.1, 0.5, 0.9)

    def __post_init__(self) -> None:
        if not self.text.strip() or not self.question.strip():
            raise OptionError("The needle and its question must not be empty; leave both out for the built-in ones.")
        wrong = [depth for depth in self.depths if not 0 <= depth <= 1]
        if wrong or not self.depths:
            raise OptionError(f"A needle's depths are shares of the text from 0 to 1, for example 0.1,0.5,0.9, not {wrong or 'none'}.")


@dataclass(frozen=True)
class Planted:
    """A text with a needle: token ids ``(N,)``, positions of the needle's tokens, and positions of the question's tokens."""

    ids: Tensor
    needle: Tensor
    question: Tensor


class DiagnosisText:
    """Token ids of a text, with the tokenizer's special tokens around them.

    Args:
        text: the text, a text file, or token ids ``(N,)`` without special tokens.
        tokenizer: the model's tokenizer. Token ids do not need it, but then there can be no needle.
        longest: maximum number of tokens that will be read.
        vocabulary: number of the model's embeddings.
    """

    def __init__(self, text: str | Path | Tensor, tokenizer: Any | None, longest: int, vocabulary: int) -> None:
        self.tokenizer = tokenizer
        self.prefix: list[int] = []
        self.suffix: list[int] = []
        self.name = "token ids" if isinstance(text, Tensor) else text.name if isinstance(text, Path) else "text"
        self.described = f"text {self.name!r}" if isinstance(text, Path) else "text"
        if isinstance(text, Tensor):
            if text.dim() != 1:
                raise LengthError(f"Token ids have the shape {tuple(text.shape)}, but must be those of one text, (tokens,).")
            self.ids: list[int] = text.tolist()
        else:
            full_text = _read(text)
            if tokenizer is None:
                raise OptionError("The model has no tokenizer; pass one as tokenizer=, or token ids in place of the text.")
            self.prefix, self.suffix = special_ids(tokenizer)
            beginning = excerpt(full_text, longest)
            self.ids = self.encode(beginning)
            if len(self.ids) < longest and len(beginning) < len(full_text):
                self.ids = self.encode(full_text)
        if self.ids and not 0 <= min(self.ids) <= max(self.ids) < vocabulary:
            raise CheckpointError(
                f"The token ids are up to {max(self.ids)}, but the model has {vocabulary} embeddings; the tokenizer is another model's."
            )

    def encode(self, text: str) -> list[int]:
        """Ids of a text without special tokens."""
        assert self.tokenizer is not None
        return token_ids(self.tokenizer, text, special_tokens=False)

    @property
    def tokens(self) -> int:
        """Number of tokens of the longest input from this text, special tokens included."""
        return len(self.ids) + len(self.prefix) + len(self.suffix)

    def check(self, length: int) -> None:
        """Raise :class:`LengthError` if there are fewer than ``length`` tokens."""
        if self.tokens < length:
            raise LengthError(
                f"The {self.described} has {self.tokens:,} tokens, but {length:,} are needed; give a longer text, or --lengths "
                f"{self.tokens}."
            )

    def plain(self, length: int) -> Tensor:
        """The first tokens of the text between the special tokens, ``(length,)``."""
        self.check(length)
        body = length - len(self.prefix) - len(self.suffix)
        return torch.tensor(self.prefix + self.ids[:body] + self.suffix)

    def planted(self, length: int, needle: Needle, depth: float, *, masked: bool) -> Planted:
        """The text with the needle at ``depth`` and its question at the end, together ``length`` tokens.

        masked: end the question with the mask token, which a masked language model would replace by the answer.
        """
        needle_ids, question_ids = self.encode(needle.text), self.encode(needle.question)
        mask = getattr(self.tokenizer, "mask_token_id", None) if masked else None
        question_ids = question_ids if mask is None else [*question_ids, mask]
        body = length - len(self.prefix) - len(self.suffix) - len(needle_ids) - len(question_ids)
        if body < 1:
            raise LengthError(
                f"A needle and its question have {len(needle_ids) + len(question_ids)} tokens, which leaves no text in {length} tokens."
            )
        before = round(depth * body)
        start, end = len(self.prefix) + before, len(self.prefix) + body + len(needle_ids)
        ids = [*self.prefix, *self.ids[:before], *needle_ids, *self.ids[before:body], *question_ids, *self.suffix]
        return Planted(torch.tensor(ids), torch.arange(start, start + len(needle_ids)), torch.arange(end, end + len(question_ids)))


def _read(text: str | Path) -> str:
    if isinstance(text, Path):
        return text_of(text)
    if len(text) < MAX_FILE_NAME and "\n" not in text and Path(text).is_file():
        raise OptionError(f"{text!r} is the name of a file; give Path({text!r}) for its text.")
    if not text.strip():
        raise CheckpointError("The text is empty.")
    return text


def read_lengths(texts: Sequence[str]) -> list[int]:
    """Read lengths such as ``["512", "1K", "2048"]``, in ascending order without duplicates; K is 1,024.

    Raises:
        OptionError: a text is not a number of tokens.
    """
    lengths = []
    for text in texts:
        number, thousands = (text[:-1], 1024) if text[-1:] in ("K", "k") else (text, 1)
        if not (number.isascii() and number.isdigit() and len(number) < 10 and int(number) > 0):
            raise OptionError(f"{text!r:.60} is not a number of tokens; give for example --lengths 512,2K,8K.")
        lengths.append(int(number) * thousands)
    return sorted(set(lengths))


def read_depths(text: str) -> tuple[float, ...]:
    """Read depths such as ``"0.1,0.5"``; raises :class:`OptionError` if one is not a number."""
    try:
        depths = tuple(map(float, text.split(",")))
    except ValueError:
        depths = (math.nan,)
    if not all(map(math.isfinite, depths)):
        raise OptionError(f"{text!r:.60} are not shares of the text from 0 to 1; give for example --depths 0.1,0.5,0.9.")
    return depths
