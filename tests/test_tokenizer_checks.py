"""Tokenizers that others made: texts grow within bounds, and what fails in them is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from tokenizers.normalizers import NFKC, NFKD, ByteLevel, Prepend, Replace
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_longattn.errors import CheckpointError
from hf_longattn.inputs.tokenizer import token_ids
from hf_longattn.loading import call_tokenizer, check_tokenizer, load_part

from .cases import every_case

CATASTROPHIC = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
FAILING_TEXT = f"{'a' * 40}b"


def tokenizer_with(limit: Any = 512, **parts: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of three words with a normalizer, a pre-tokenizer or a post-processor."""
    backend = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "b": 2, "[CLS]": 3}, "[UNK]"))
    for name, part in parts.items():
        setattr(backend, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=limit, unk_token="[UNK]", pad_token="[UNK]")


def template(single: str, count: int = 1) -> processors.TemplateProcessing:
    special = {"id": "[CLS]", "ids": [3] * count, "tokens": ["[CLS]"] * count}
    return processors.TemplateProcessing(single=single, special_tokens=[special])


def precompiled(longest: str) -> normalizers.Normalizer:
    """SentencePiece's table of characters, with an empty trie and one text that it can write."""
    return normalizers.Precompiled((1024).to_bytes(4, "little") + bytes(1024) + longest.encode() + b"\0")


GROWING = {
    "one rule": {"normalizer": Replace(".", " . " * 40)},
    "two rules": {"normalizer": normalizers.Sequence([Replace(".", " . " * 8), Replace(".", " . " * 8)])},
    "nested": {"normalizer": normalizers.Sequence([normalizers.Sequence([NFKC(), Replace(Regex("[0-9]"), "a" * 20)]), Replace("a", "bb")])},
    "of nothing": {"normalizer": Replace(Regex("x*"), "word " * 10)},
    "in SentencePiece's table": {"normalizer": normalizers.Sequence([precompiled("word " * 30), Replace(" ", "▁")])},
    "before a text": {"normalizer": Prepend("a" * 100)},
    "bytes of bytes": {"normalizer": normalizers.Sequence([ByteLevel()] * 20)},
    "in the pre-tokenizer": {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(use_regex=False)] * 20)},
    "a later pre-tokenizer": {"normalizer": Replace("b", "é" * 12), "pre_tokenizer": pre_tokenizers.ByteLevel()},
}
USUAL = {
    "none": {},
    "sentencepiece": {"normalizer": normalizers.Sequence([Prepend("▁"), Replace(" ", "▁")])},
    "quotes": {"normalizer": normalizers.Sequence([Replace("``", '"'), Replace("''", '"'), NFKD(), normalizers.StripAccents()])},
    "names of pictures": {"normalizer": normalizers.Sequence([Replace("😀", " :grinning_face_with_a_long_name: ")] * 40)},
    "compatibility forms": {"normalizer": NFKC()},
    "SentencePiece's table": {"normalizer": precompiled("صلى الله عليه وسلم")},  # the longest text of nmt_nfkc
    "bytes": {"pre_tokenizer": pre_tokenizers.ByteLevel()},
    "no limit": {"limit": int(1e30)},
    "no limit as JSON's number": {"limit": 1e30},
    "special tokens": {"post_processor": template("[CLS] $A [CLS]", 9)},
}


@every_case("name", GROWING)
def test_check_tokenizer_refuses_rules_that_make_a_text_far_longer(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"The tokenizer.json of 'bert' makes a text more than 32 times as long, or repeats it"):
        check_tokenizer(tokenizer_with(**GROWING[name]), "bert")


@every_case("name", USUAL)
def test_check_tokenizer_passes_rules_of_usual_tokenizers(name: str) -> None:
    tokenizer = tokenizer_with(**USUAL[name])
    check_tokenizer(tokenizer, "bert")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(object())  # such as RoFormer's
    check_tokenizer(tokenizer, "bert")


def test_check_tokenizer_refuses_repeated_texts_and_too_many_special_tokens() -> None:
    for repeated in (template("$A $A"), processors.Sequence([template("[CLS] $A $A [CLS]"), template("$A")])):
        with pytest.raises(CheckpointError, match="or repeats it"):
            check_tokenizer(tokenizer_with(post_processor=repeated), "bert")
    with pytest.raises(CheckpointError, match="or repeats it"):
        check_tokenizer(tokenizer_with(post_processor=template("[CLS] $A", 600)), "bert")


def test_panics_of_a_tokenizer_are_one_sentence(tmp_path: Path) -> None:
    failing = tokenizer_with(pre_tokenizer=CATASTROPHIC)
    for call in (call_tokenizer, token_ids):
        with pytest.raises(CheckpointError, match=r"tokenizer.* does not fit the text: Onig: Regex search error"):
            call(failing, FAILING_TEXT)
    growing = tokenizer_with(normalizer=Replace("b", "a" * 30 + "!"), pre_tokenizer=CATASTROPHIC)
    growing.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"The tokenizer.json of .* is damaged: Onig"):
        load_part(AutoTokenizer, tmp_path)


def test_load_part_refuses_a_tokenizer_that_makes_a_text_far_longer(tmp_path: Path) -> None:
    tokenizer_with().save_pretrained(tmp_path)
    assert load_part(AutoTokenizer, tmp_path)("a").input_ids == [1]
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    values["normalizer"] = {"type": "Replace", "pattern": {"String": "a"}, "content": "a b " * 100}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="makes a text more than 32 times as long"):
        load_part(AutoTokenizer, tmp_path)
