"""What a search reads: pieces of a text, or images and recordings as the model's processor makes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conversion.plan import ConversionPlan
from ..data.english import verification_text
from ..data.masking import masked_tokens
from ..errors import LengthError
from ..inputs.common.base import InputSize
from ..inputs.common.running import with_decoder_input
from ..inspect.texts import TextIds
from .model import SearchedModel


class SearchText(TextIds):
    """Pieces of one text, each as long as the model reads at once, with the tokenizer's special tokens."""

    def pieces(self, length: int, count: int) -> list[Tensor]:
        """Up to ``count`` pieces of ``length`` tokens ``(length,)``, one after the other; at least one.

        Raises:
            LengthError: the text is shorter than one.
        """
        body = length - len(self.prefix) - len(self.suffix)
        starts = range(0, len(self.ids) - body + 1, body) if body > 0 else ()
        if not starts:
            raise LengthError(
                f"The {self.described} has {self.tokens:,} tokens, but the search reads {length:,} at once; give a longer text."
            )
        return [torch.tensor(self.prefix + self.ids[start : start + body] + self.suffix) for start in starts[:count]]

    def predicted(self, length: int, count: int, *, causal: bool) -> list[tuple[Tensor, Tensor]]:
        """Pieces with the labels of what is predicted: every next token, or masked ones."""
        pieces = self.pieces(length, count)
        return [(piece, piece) if causal else masked_tokens(piece, self.tokenizer, number) for number, piece in enumerate(pieces)]

    def arguments(self, piece: Tensor, model: Any) -> dict[str, Tensor]:
        """What ``model`` is called with."""
        return {"input_ids": piece[None].to(model.device)}

    def too_few(self, pieces: int, wanted: int) -> str:
        """The note on a choice by a short text."""
        return f"The text is enough for {pieces} of {wanted} pieces; a longer one gives a surer choice."


class SearchInputs:
    """Images or recordings, with the methods of :class:`SearchText`.

    Args:
        given: a file or a folder of them; ``None`` for scikit-learn's photographs.
        plan: of a conversion of the model.
        count: most inputs to read.

    Raises:
        DataError, AudioError, CheckpointError, OptionError: see :class:`~hf_longattn.inputs.common.user_files.UserInputs`.
    """

    def __init__(self, given: object, plan: ConversionPlan, count: int) -> None:
        kind: Any = plan.kind
        self.config = plan.architecture.source_config
        self.kind, self.user = kind, kind.user_inputs(kind.rule, self.config, plan.source.folder, plan.source.name, given, count)
        self.name, self.too_few = self.user.name, self.user.too_few
        self._pieces: dict[InputSize, list[dict[str, Tensor]]] = {}

    def pieces(self, size: Any, count: int) -> list[dict[str, Tensor]]:
        """Up to ``count`` inputs of this size, each as arguments of ``forward`` for one of them.

        Raises:
            LengthError, DataError: no recording is so long.
            GridError: the processor makes inputs of another size.
        """
        if size not in self._pieces:
            self._pieces[size] = [self.kind.arguments(self.config, values) for values in self.user.values(size.value)]
        return self._pieces[size][:count]

    def predicted(self, size: Any, count: int, *, causal: bool) -> list[tuple[dict[str, Tensor], None]]:
        """The inputs; everything that a head says of one is compared."""
        return [(piece, None) for piece in self.pieces(size, count)]

    def arguments(self, piece: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
        return {name: value.to(model.device) for name, value in with_decoder_input(model, piece).items()}


def read_inputs(text: str | Path | Tensor | None, model: SearchedModel, pieces: int) -> SearchText | SearchInputs:
    """The text, tokenised as far as ``pieces`` need it, or images or recordings; ``None`` for those that come with packages."""
    if model.original.kind.user_inputs is not None:
        return SearchInputs(text, model.original, pieces)
    text, name = verification_text(None) if text is None else (text, None)
    vocabulary = getattr(model.original.config.get_text_config(), "vocab_size", 2)
    searched = SearchText(text, model.tokenizer, pieces * model.length, vocabulary)
    searched.name = name or searched.name
    return searched
