"""Tokenizers of the classes that checkpoints come with, trained on the spot, so that no test needs a published
vocabulary."""

from __future__ import annotations

import string
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES
from transformers.models.esm.configuration_esm import get_default_vocab_list

from hf_longattn.evaluation.token_loss import PARAGRAPHS

REAL_TEXT = PARAGRAPHS + (Path(__file__).resolve().parents[1] / "LICENSE").read_text(encoding="utf-8")
PAGE_TAGS = {
    "MarkupLMTokenizer": {"tags_dict": {tag: number for number, tag in enumerate(("html", "body", "p", "span"))}}
}
"""What a tokenizer of pages is made with."""
OTHERS = ("Naïve façades don't cost 3.50 – or do they?", " ".join(string.printable))


def tokenizer_of(base: str, length: int | None = None, *, texts: Sequence[str] = ()) -> PreTrainedTokenizerBase:
    """The tokenizer class of ``base`` with at most 900 pieces, found in real text and in ``texts``; ``length`` is
    its limit.

    Raises:
        AssertionError: the class cannot be trained.
    """
    kind = getattr(transformers, str(TOKENIZER_MAPPING_NAMES.get(base)), None)
    assert kind is not None, f"transformers names no tokenizer of {base}"
    read = [*REAL_TEXT.splitlines(), *OTHERS, *texts]
    if kind is transformers.EsmTokenizer:
        made = esm_tokenizer()
    else:
        try:
            made = kind(**PAGE_TAGS.get(kind.__name__, {})).train_new_from_iterator(read, 900)
        except Exception as error:  # tokenizers raise what they like where a vocabulary is missing
            raise AssertionError(f"a {kind.__name__} cannot be trained") from error
    if length is not None:
        made.model_max_length = length
    return made


def esm_tokenizer() -> Any:
    """ESM's, whose vocabulary is not learned: the letters that stand for amino acids."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.txt"
        file.write_text("\n".join(get_default_vocab_list()), encoding="utf-8")
        return transformers.EsmTokenizer(str(file))
