"""One tokenizer of each kind that models come with, small, and what it does with the words of a running text."""

from __future__ import annotations

import functools
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.trained import REAL_TEXT, tokenizer_of

KINDS = ("wordpiece", "bytes", "bytes-framed", "bytes-prefixed", "bytes-bos", "metaspace", "metaspace-bos", "unigram", "unigram-end")
CLASSES = {"wordpiece": "bert", "bytes": "gpt2", "bytes-framed": "roberta", "unigram": "xlm-roberta", "unigram-end": "t5"}
"""Kinds that are a class of transformers."""
RUN_NER_PREFIXES = ("bytes", "bytes-framed", "bytes-prefixed")
"""Kinds that ``run_ner`` loads with ``add_prefix_space=True``: those of GPT-2 and RoBERTa."""
LLAMA_3 = Regex(r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
"""How Llama 3's tokenizer splits a text before its byte-level pieces."""


@functools.cache
def folder_of(kind: str, parent: Path) -> str:
    """A folder with the tokenizer, which pads and masks, for every test of a session."""
    folder = parent / kind
    if kind == "bytes-prefixed":
        tokenizer = AutoTokenizer.from_pretrained(folder_of("bytes-framed", parent), add_prefix_space=True)
    else:
        tokenizer = tokenizer_of(CLASSES[kind]) if kind in CLASSES else made(kind)
    missing = {f"{name}_token": f"<{name}>" for name in ("pad", "mask") if getattr(tokenizer, f"{name}_token") is None}
    tokenizer.add_special_tokens(missing)
    tokenizer.save_pretrained(folder)
    return str(folder)


def load(kind: str, parent: Path) -> PreTrainedTokenizerBase:
    """A tokenizer of its own, which a test may change."""
    return AutoTokenizer.from_pretrained(folder_of(kind, parent))


def made(kind: str) -> PreTrainedTokenizerBase:
    """Byte-level BPE split as in Llama 3 with a first token, or SentencePiece-like BPE with and without one, as in Llama 2."""
    special = ["<s>", "</s>"]
    if kind == "bytes-bos":
        tokenizer, alphabet = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel.alphabet()
        split = pre_tokenizers.Split(LLAMA_3, "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer, alphabet = Tokenizer(models.BPE(unk_token="<unk>")), sorted(set(REAL_TEXT))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
        special.append("<unk>")
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(REAL_TEXT.splitlines(), trainer)
    if kind.endswith("-bos"):
        first = [("<s>", 0)]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=first)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def word_ids(word: str, tokenizer: PreTrainedTokenizerBase, kind: str) -> list[int]:
    """The tokens of a word inside a text: byte-level pieces begin with its space."""
    text = f" {word}" if kind.startswith("bytes") else word
    return tokenizer(text, add_special_tokens=False)["input_ids"]
