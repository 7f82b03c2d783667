"""Pieces of a text, each as long as the model reads at once, with the tokenizer's special tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.masking import masked_tokens
from ..errors import LengthError
from ..inspect.texts import TextIds


class SearchText:
    """Pieces of one text.

    Args:
        text: the text, a file (``Path``), or token ids ``(N,)`` without special tokens.
        tokenizer: of the model; not needed for ids.
        tokens: the most that will be read.
        vocabulary: embeddings of the model.
    """

    has_loss = True
    """Whether a model predicts parts of a piece, so that its loss can be measured."""

    def __init__(self, text: str | Path | Tensor, tokenizer: Any | None, tokens: int, vocabulary: int) -> None:
        self.source = TextIds(text, tokenizer, tokens, vocabulary)
        self.tokenizer, self.name = tokenizer, self.source.name

    def pieces(self, length: int, count: int) -> list[Tensor]:
        """Up to ``count`` pieces of ``length`` tokens ``(length,)``, one after the other; at least one.

        Raises:
            LengthError: the text is shorter than one.
        """
        body = length - len(self.source.prefix) - len(self.source.suffix)
        ids, pieces = self.source.ids, list[Tensor]()
        for start in range(0, len(ids) - body + 1, max(1, body)):
            if body < 1 or len(pieces) == count:
                break
            pieces.append(torch.tensor(self.source.prefix + ids[start : start + body] + self.source.suffix))
        if not pieces:
            raise LengthError(
                f"The {self.source.described} has {self.source.tokens:,} tokens, but the search reads {length:,} at once; give a longer "
                "text."
            )
        return pieces

    def arguments(self, piece: Tensor, device: torch.device) -> dict[str, Tensor]:
        """What the model is called with."""
        return {"input_ids": piece[None].to(device)}

    def completed(self, model: Any, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
        """The ``arguments`` of a piece with what else ``model`` needs."""
        return arguments

    def too_few(self, pieces: int, wanted: int) -> str:
        """The note on a choice by a short text."""
        return f"The text is enough for {pieces} of {wanted} pieces; a longer one gives a surer choice."

    def masked(self, piece: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """The piece with masked tokens, and the labels, both ``(N,)``; see :func:`hf_longattn.data.masking.masked_tokens`."""
        return masked_tokens(piece, self.tokenizer, seed)

    def predicted(self, length: int, count: int, *, causal: bool) -> list[tuple[Tensor, Tensor]]:
        """Pieces with the labels of what is predicted: every next token, or masked ones."""
        pieces = self.pieces(length, count)
        return [(piece, piece) if causal else self.masked(piece, number) for number, piece in enumerate(pieces)]
