"""Tokenizers of the classes that checkpoints come with, trained on the spot, so that no test needs a published vocabulary."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from hf_longattn.inputs.text import PARAGRAPHS
from scripts.dev.tools.family_checkpoints import trained_tokenizer

REAL_TEXT = PARAGRAPHS + (Path(__file__).resolve().parents[1] / "LICENSE").read_text(encoding="utf-8")
OTHERS = ("Naïve façades don't cost 3.50 – or do they?", " ".join(string.printable))


def tokenizer_of(base: str, length: int | None = None, *, texts: Sequence[str] = (), size: int = 900) -> PreTrainedTokenizerBase:
    """The tokenizer class of ``base`` with at most ``size`` pieces, found in real text and in ``texts``; ``length`` is its limit."""
    made, described = trained_tokenizer(base, [*REAL_TEXT.splitlines(), *OTHERS, *texts], size)
    assert described == type(made).__name__
    if length is not None:
        made.model_max_length = length
    return made
