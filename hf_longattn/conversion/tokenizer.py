"""Tokenizers of checkpoints, and texts for verification."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from ..data.tokenization import between, special_ids, text_encoding
from ..errors import CheckpointError
from ..loading import check_token_ids, load_part
from ..modeling.family.definition import Family
from ..modeling.family.input_spec import InputSize, tokenizer_files

LARGEST_TOKENIZER = 256 * 2**20
"""Maximum bytes of a tokenizer's file, which the libraries read into memory. The largest known files have tens of
MB."""
CHARACTERS_PER_TOKEN = 10
"""Characters of an excerpt per requested token. Normal text has fewer, and a long file is not tokenised whole."""
READABLE_TEXT, LONGER_TEXT = (
    f"--verify-text FILE with {which} that the source was trained to read" for which in ("text", "a longer text")
)
"""Phrases for messages, about a text that would allow a verdict on training if the present text does not."""


class VerificationText:
    """A text and its token ids, on which source and result of a conversion are run.

    The ids are random if the source has no tokenizer, or if its tokenizer does not know most of the text.

    Attributes:
        origin: where the text is from, as a noun phrase.
        why_seeded: the reason for random ids, as a clause; empty for the ids of the text.
        ids: all token ids of the text, with special tokens; empty for random ids.
        end: a token id that replaces the last token in inputs from :meth:`at`.
    """

    def __init__(
        self, text: str, origin: str, tokenizer: Any | None, vocab_size: int, *, end: int | None = None
    ) -> None:
        self.text, self.origin, self.tokenizer, self.vocab_size, self.end = text, origin, tokenizer, vocab_size, end
        self.why_seeded, self.ids = "the source has no tokenizer", list[int]()
        if tokenizer is not None:
            self.why_seeded, self.ids = "", token_ids(tokenizer, text)
            if not self.ids:
                raise CheckpointError(f"The source's tokenizer finds no token in the {origin}; it is damaged.")
            if self.ids.count(tokenizer.unk_token_id) > len(self.ids) // 2:  # ESM knows amino acids only
                self.why_seeded = f"the source's tokenizer does not know most of the {origin}"

    def tokens(self, count: int) -> Tensor:
        """The first ``count`` token ids, ``(1, count)`` int64. A text that is too short is repeated.

        They are the ids of the text with special tokens, or random ids that are the same at every call.
        """
        if self.why_seeded:
            generator = torch.Generator().manual_seed(0)
            return torch.randint(min(5, self.vocab_size - 1), self.vocab_size, (1, count), generator=generator)
        return torch.tensor(self.ids).repeat(-(-count // len(self.ids)))[:count].unsqueeze(0)

    def at(self, size: InputSize) -> dict[str, Any]:
        """The arguments of ``forward`` for one text of this size."""
        ids = self.tokens(size.tokens).clone()
        if self.end is not None:
            ids[:, -1] = self.end
        return {"input_ids": ids}

    @cached_property
    def special(self) -> tuple[list[int], list[int]]:
        """The ids of the special tokens before and after a text."""
        return ([], []) if self.why_seeded else special_ids(self.tokenizer)

    def passages(self, count: int, length: int) -> Tensor:
        """Consecutive passages of the text ``(count, length)``, int64. Each has special tokens at its ends if they
        fit."""
        ids = self.tokens(count * length).view(count, length)
        before, after = self.special
        return between(ids, before, after) if length > len(before) + len(after) else ids

    def real_tokens(self) -> int:
        """Number of tokens of the text before it repeats; 0 for random ids."""
        return 0 if self.why_seeded else len(self.ids)

    def describe(self) -> str:
        """The origin of the tokens, for a report."""
        return f"seeded token ids, since {self.why_seeded}" if self.why_seeded else self.origin


def text_inputs(
    family: Family, config: Any, folder: Path, text: tuple[str, str], recording: Path | None = None
) -> VerificationText:
    """The inputs of a model that reads texts, from the start of a text. Every modality has a function like this one.

    Args:
        config: the config of the result.
        folder: the folder with the tokenizer.
        text: the text, and its origin as a noun phrase.
        recording: not used.
    """
    end = getattr(config, "eos_token_id", None)
    if not isinstance(end, int) or end >= config.vocab_size:
        end = None
    tokenizer = load_tokenizer(folder, config)
    return VerificationText(excerpt(text[0], family.longest(config)), text[1], tokenizer, config.vocab_size, end=end)


def token_ids(tokenizer: Any, text: str, *, special_tokens: bool = True) -> list[int]:
    return list(
        text_encoding(tokenizer, text, add_special_tokens=special_tokens, truncation=False, verbose=False)["input_ids"]
    )


def excerpt(text: str, count: int) -> str:
    """The start of a text, long enough for ``count`` tokens of normal text."""
    return text[: CHARACTERS_PER_TOKEN * max(count, 512)]


def load_tokenizer(folder: Path, config: Any = None) -> Any | None:
    """The tokenizer of a checkpoint folder; ``None`` if there is none.

    Raises:
        CheckpointError: a file is too large or damaged, or the tokenizer has ids beyond the model with this config.
    """
    files = tokenizer_files(folder)
    if not files:
        return None
    for file in files:
        if file.stat().st_size > LARGEST_TOKENIZER:
            size, most = file.stat().st_size / 1e6, LARGEST_TOKENIZER / 1e6
            raise CheckpointError(
                f"{str(file)!r} is too large for a tokenizer: {size:,.0f} MB, but at most {most:,.0f} MB are read."
            )
    tokenizer = load_part(AutoTokenizer, folder, "tokenizer")
    if config is not None:
        check_token_ids(tokenizer, config, folder)
    return tokenizer
