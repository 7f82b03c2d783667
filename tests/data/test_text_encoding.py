"""Texts for tokenizers of pages, which read words with their boxes or paths."""

from __future__ import annotations

import json
from typing import Any

import pytest
import transformers
from transformers import PreTrainedTokenizerBase

from hf_longattn.data.tokenization import special_ids, text_encoding
from hf_longattn.inputs.tokenizer import token_ids
from tests.byte_tokenizer import train_tokenizer

WORDS = ["Payment", "of", "the", "invoice", "12345", "is", "due", "by", "the", "end", "of", "June"]
BYTE_PIECES = train_tokenizer([" ".join(WORDS)] * 3, 300)
VOCABULARY = json.loads(BYTE_PIECES.backend_tokenizer.to_str())["model"]["vocab"]
OF_PAGES = ("LayoutLMv2Tokenizer", "MarkupLMTokenizer")
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    extra = {"tags_dict": {"html": 0, "body": 1, "p": 2}} if name == "MarkupLMTokenizer" else {}
    tokenizer_class: Any = getattr(transformers, name)
    merges = {} if name == "LayoutLMv2Tokenizer" else {"merges": []}
    return tokenizer_class(vocab=VOCABULARY, model_max_length=64, **merges, **SPECIAL, **extra)


@pytest.mark.parametrize("name", OF_PAGES)
def test_tokenizers_of_pages_read_text_as_words_of_a_page(name: str) -> None:
    tokenizer, text = tokenizer_of(name), " ".join(WORDS)
    places = {"xpaths": ["/html/body/p"] * len(WORDS)} if name == "MarkupLMTokenizer" else {"boxes": [[0, 0, 1000, 1000]] * len(WORDS)}
    assert token_ids(tokenizer, text) == tokenizer(WORDS, **places)["input_ids"]
    assert special_ids(tokenizer) == ([tokenizer.cls_token_id], [tokenizer.sep_token_id])
    assert token_ids(tokenizer, text, special_tokens=False) == token_ids(tokenizer, text)[1:-1]


def test_other_tokenizers_read_text_as_it_is() -> None:
    assert dict(text_encoding(BYTE_PIECES, "two  spaces")) == dict(BYTE_PIECES("two  spaces"))
