"""The token ids of a text, cut to several lengths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conversion.tokenizer import excerpt, token_ids
from ..data.tokenization import special_ids
from ..errors import CheckpointError, InputError, OptionError
from ..evaluation.token_loss import text_of

MAX_FILE_NAME = 200
"""A text of fewer characters is refused if it is the name of an existing file."""


class TextIds:
    """Token ids of a text, and the tokenizer's special tokens before and after them.

    Args:
        text: the text, a text file, or token ids ``(N,)`` without special tokens.
        tokenizer: the model's tokenizer. Token ids do not need it.
        longest: maximum number of tokens that will be read.
        vocabulary: number of token embeddings of the model.

    Attributes:
        name: name of the text in reports.
        tokens: number of tokens of the longest input from this text, special tokens included.

    Raises:
        InputError, OptionError, CheckpointError: the text is empty or cannot be read, or the ids do not fit the model.
    """

    def __init__(self, text: str | Path | Tensor, tokenizer: Any | None, longest: int, vocabulary: int) -> None:
        self.prefix: list[int] = []
        self.suffix: list[int] = []
        self.name = text.name if isinstance(text, Path) else "text"
        if isinstance(text, Tensor):
            self.name = "token ids"
            if text.dim() != 1:
                raise InputError(
                    f"Token ids have the shape {tuple(text.shape)}, but must be of one text, (tokens,); pass ids[0]."
                )
            self.ids: list[int] = text.tolist()
        else:
            if isinstance(text, Path):
                text = text_of(text)
            elif len(text) < MAX_FILE_NAME and "\n" not in text and Path(text).is_file():
                raise OptionError(f"{text!r} is the name of a file; give Path({text!r}) for its text.")
            elif not text.strip():
                raise CheckpointError("The text is empty; give another text.")
            if tokenizer is None:
                raise OptionError(
                    "The model has no tokenizer; pass one as processor=, or token ids in place of the text."
                )
            self.prefix, self.suffix = special_ids(tokenizer)
            # Tokenise only the beginning of a long text, if that is enough.
            beginning = excerpt(text, longest)
            self.ids = token_ids(tokenizer, beginning, special_tokens=False)
            if len(self.ids) < longest and len(beginning) < len(text):
                self.ids = token_ids(tokenizer, text, special_tokens=False)
        if self.ids and not 0 <= min(self.ids) <= max(self.ids) < vocabulary:
            raise CheckpointError(
                f"The token ids are up to {max(self.ids)}, but the model has {vocabulary} embeddings; give the "
                "tokenizer of this model."
            )
        self.tokens = len(self.ids) + len(self.prefix) + len(self.suffix)

    def plain(self, length: int) -> Tensor:
        """Token ids ``(length,)``: the special tokens, and between them the first tokens of the text.

        Raises:
            InputError: the text has fewer tokens.
        """
        if self.tokens < length:
            raise InputError(
                f"The text has {self.tokens:,} tokens, but {length:,} are needed; give a longer text, or "
                f"--lengths {self.tokens}."
            )
        body = length - len(self.prefix) - len(self.suffix)
        return torch.tensor(self.prefix + self.ids[:body] + self.suffix)


def read_lengths(typed: str) -> list[int]:
    """Read lengths such as ``512,1K,2048``, in ascending order without duplicates; K is 1,024.

    Raises:
        OptionError: a part is not a number of tokens.
    """
    lengths = []
    for text in typed.split(","):
        match = re.fullmatch("([0-9]{1,9})([Kk]?)", text)
        if match is None or int(match[1]) == 0:
            raise OptionError(f"{text!r:.60} is not a number of tokens; give for example --lengths 512,2K,8K.")
        factor = 1024 if match[2] else 1
        lengths.append(int(match[1]) * factor)
    return sorted(set(lengths))
