"""Texts as token ids: a checkpoint's tokenizer, and texts for verification."""

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
"""Maximum bytes of a tokenizer file, which the libraries read whole. The largest in use have tens of MB."""
CHARACTERS_PER_TOKEN = 10
"""Characters per requested token in an excerpt, so that a long file is not tokenised whole. Enough for usual text."""
READABLE_TEXT, LONGER_TEXT = (
    f"--verify-text FILE with {which} that the source was trained to read" for which in ("text", "a longer text")
)
"""Noun phrases for texts that would allow a verdict if the given text does not."""


class VerificationText:
    """A text and its token ids.

    The ids are random if the source has no tokenizer, or if its tokenizer does not know most of the text.
    ``why_seeded`` is then the reason as a clause. ``end`` replaces the last token in inputs from :meth:`at`.
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
        """The text's token ids ``(1, count)``, int64, with special tokens, or seeded ids. A shorter text is
        repeated."""
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
        """Ids that the tokenizer puts before a text, and ids that it puts after it."""
        return ([], []) if self.why_seeded else special_ids(self.tokenizer)

    def passages(self, count: int, length: int) -> Tensor:
        """Consecutive passages of the text ``(count, length)``, int64, each between the tokenizer's special tokens."""
        ids, (before, after) = self.tokens(count * length).view(count, length), self.special
        return between(ids, before, after) if length > len(before) + len(after) else ids

    def real_tokens(self) -> int:
        """Number of tokens of the text before it repeats; 0 for seeded ids."""
        return 0 if self.why_seeded else len(self.ids)

    def describe(self) -> str:
        """The origin of the tokens, for a report."""
        return f"seeded token ids, since {self.why_seeded}" if self.why_seeded else self.origin


def text_inputs(
    family: Family, config: Any, folder: Path, text: tuple[str, str], recording: Path | None = None
) -> VerificationText:
    """The start of a text for a model with this config. ``text``: with its origin; ``recording``: not used."""
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
    """The tokenizer of a checkpoint folder, if any. Refuses large or damaged files, and token ids beyond the model
    with ``config``."""
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
