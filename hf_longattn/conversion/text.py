"""Text to verify a conversion with, and its token ids."""

from __future__ import annotations

import importlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.page_words import text_encoding
from ..data.tokenization import between, special_ids
from ..errors import CheckpointError, checkpoint_errors
from ..loading import load_part
from ..processor_files import TOKENIZER_CONFIG
from ..reading import read_text

LARGEST_TEXT = 2**30
"""Maximum bytes of the user's text, which is read whole."""
LARGEST_TOKENIZER = 256 * 2**20
"""Maximum bytes of a tokenizer file, which the libraries read whole; the largest in use have some tens of MB."""
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges*", "*.model", "*.spm", "*.tiktoken", "added_tokens.json", "special_tokens_map.json")
CHARACTERS_PER_TOKEN = 10
"""Characters per requested token: enough for any tokenizer, so that a long file is not tokenised whole."""

PARAGRAPHS = """\
The lighthouse stands where the river meets the sea. Every evening, before the boats come home, its keeper climbs the
spiral stairs, wipes the salt from the glass and lights the lamp. In a notebook she writes down the wind, the height of
the tide and the names of the ships that pass. The notebooks fill a whole shelf by now, and whoever reads them in order
can follow forty years of weather, trade and patience.

When a storm broke the northern pier in the third winter, the town argued for months about what to do. Some wanted to
rebuild it in stone; others said that the money should go to the school, because a harbour without people who can read
a chart is of no use. In the end they did both, slowly: the school was finished first, and its oldest pupils measured
the sea bed and drew the plans from which the pier was built.

Measuring is mostly waiting. A line with a weight is lowered, the depth is read, the boat moved on by one length, and
the line is lowered again. A single reading says little, since waves lift the boat and currents bend the line; only
when many of them are put side by side does the shape of the ground appear. The keeper compared it to her notebooks:
no page is interesting, she said, but the shelf is.
"""


class VerificationText:
    """A text and its token ids."""

    def __init__(self, text: str, origin: str, tokenizer: Any | None, vocab_size: int) -> None:
        self.text, self.origin, self.tokenizer, self.vocab_size = text, origin, tokenizer, vocab_size
        self.source_tokenizer = tokenizer
        self._ids: Tensor | None = None
        self.why_seeded = "the source has no tokenizer"
        if tokenizer is not None and self._mostly_unknown(tokenizer.unk_token_id):  # a vocabulary without words (ESM)
            self.tokenizer, self.why_seeded = None, f"the source's tokenizer does not know most of the {origin}"

    def tokens(self, count: int) -> Tensor:
        """(1, count) int64: the text with the tokenizer's special tokens, repeated if it is shorter.

        Without a tokenizer, or with one that does not know the text: seeded ids from the vocabulary.
        """
        if self.tokenizer is None:
            generator = torch.Generator().manual_seed(0)
            return torch.randint(min(5, self.vocab_size - 1), self.vocab_size, (1, count), generator=generator)
        ids = self._encoded()
        if len(ids) >= count:
            return ids[:count].unsqueeze(0)
        return ids.repeat(-(-count // len(ids)))[:count].unsqueeze(0)

    @cached_property
    def special(self) -> tuple[list[int], list[int]]:
        """The tokens that the tokenizer puts before and after a text."""
        return ([], []) if self.tokenizer is None else special_ids(self.tokenizer)

    def passages(self, count: int, length: int) -> Tensor:
        """(count, length) int64: pieces of the text one after another, each between the tokenizer's special tokens."""
        ids, (before, after) = self.tokens(count * length).view(count, length), self.special
        return between(ids, before, after) if length > len(before) + len(after) else ids

    def real_tokens(self) -> int:
        """Tokens of the text before it repeats; 0 without a tokenizer."""
        return 0 if self.tokenizer is None else len(self._encoded())

    def describe(self) -> str:
        """What the tokens are, for a report."""
        return self.origin if self.tokenizer is not None else f"seeded token ids, since {self.why_seeded}"

    def _mostly_unknown(self, unknown: int | None) -> bool:
        return unknown is not None and int((self._encoded() == unknown).sum()) > len(self._encoded()) // 2

    def _encoded(self) -> Tensor:
        if self._ids is None:
            assert self.tokenizer is not None
            ids = token_ids(self.tokenizer, self.text)
            if not ids or max(ids) >= self.vocab_size:
                raise CheckpointError(
                    f"The source's tokenizer gives token ids up to {max(ids, default=-1)}, but its model has"
                    f" {self.vocab_size} embeddings; the tokenizer belongs to another model."
                )
            self._ids = torch.tensor(ids)
        return self._ids


def verification_text(file: str | Path | None) -> tuple[str, str]:
    """(text, its origin): the user's file, or built-in paragraphs and Python's manual.

    Raises:
        CheckpointError: the file cannot be read, is not UTF-8 text or is empty; give another file.
    """
    if file is None:
        return PARAGRAPHS + _python_manual(), "built-in English text"
    return text_of(Path(file)), Path(file).name


def text_of(file: Path) -> str:
    """The text of a file that the user gave, without the mark that some editors write before it.

    Raises:
        CheckpointError: the file cannot be read, is a folder, is not UTF-8 text or is empty; give another file.
    """
    if file.is_dir():
        raise CheckpointError(f"The text {str(file)!r} is a folder; give one file, for example a book.")
    try:
        text = read_text(file, LARGEST_TEXT).removeprefix("\ufeff")
    except CheckpointError as error:
        raise CheckpointError(f"The text {error}") from error
    if not text.strip():
        raise CheckpointError(f"The text {str(file)!r} is empty; give another file.")
    return text


def token_ids(tokenizer: Any, text: str, *, special_tokens: bool = True) -> list[int]:
    """Ids of the whole text.

    Raises:
        CheckpointError: the tokenizer fails.
    """
    with checkpoint_errors("The tokenizer is damaged, or does not fit the text"):
        return list(text_encoding(tokenizer, text, add_special_tokens=special_tokens, truncation=False, verbose=False)["input_ids"])


def truncated_lengths(tokenizer: Any, text: str) -> dict[str, int]:
    """The lengths of a tokenizer's outputs for a text beyond its limit, by name, with ``truncation=True``.

    Args:
        text: repeated until it is longer than the limit.

    Raises:
        CheckpointError: the tokenizer fails.
    """
    tokens = max(1, len(token_ids(tokenizer, text, special_tokens=False)))
    longer = " ".join([text] * (tokenizer.model_max_length // tokens + 2))
    with checkpoint_errors("The tokenizer is damaged, or does not fit the text"):
        encoding = text_encoding(tokenizer, longer, truncation=True)
    return {name: len(values) for name, values in encoding.items()}


def excerpt(text: str, count: int) -> str:
    """The start of a text, long enough for `count` tokens."""
    return text[: CHARACTERS_PER_TOKEN * max(count, 512)]


def load_tokenizer(folder: Path) -> Any | None:
    """The tokenizer of a checkpoint folder, or None when it has none.

    Raises:
        CheckpointError: it has tokenizer files, but they cannot be loaded.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in (TOKENIZER_CONFIG, "tokenizer.json", "vocab.txt", "vocab.json")):
        return None
    for file in sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()}):
        if file.stat().st_size > LARGEST_TOKENIZER:
            size, most = file.stat().st_size / 1e6, LARGEST_TOKENIZER / 1e6
            raise CheckpointError(f"{str(file)!r} is too large for a tokenizer: {size:,.0f} MB, but at most {most:,.0f} MB are read.")
    return load_part(AutoTokenizer, folder, "tokenizer")


def _python_manual() -> str:
    """The language reference that comes with CPython: 600 kB of English prose, missing in some slim installations."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return ""
    return "\n\n".join(topics[name] for name in sorted(topics))
