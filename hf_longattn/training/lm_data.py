"""Text to train on and to measure on, and its tokens in inputs of one length."""

from __future__ import annotations

import random
from itertools import chain
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from hf_longattn.errors import OptionError
from hf_longattn.training.lm_settings import TextRunSettings
from hf_longattn.training.sources import TextDataError, check_column, is_plain_text, read_source


def load_text(sources: list[str], *, split: str = "train", column: str = "text", limit: int = 0, seed: int = 0) -> Dataset:
    """Read documents.

    Args:
        sources: what :func:`read_source` takes; a .txt file and every file of a folder is one document.
        split: which split, where a source has several.
        column: which column holds the text.
        limit: keep so many documents at most, 0 = all, chosen by ``seed``.
        seed: the order of the documents.

    Returns:
        A dataset with the column ``text``.

    Raises:
        TextDataError: missing file, unknown split or column, or nothing to read.
    """
    data = concatenate_datasets([_load(source, split, column) for source in sources]).filter(lambda row: bool((row["text"] or "").strip()))
    if not len(data):
        raise TextDataError(f"there is no text in {', '.join(sources)}")
    order = list(range(len(data)))
    random.Random(seed).shuffle(order)
    return data.select(order[: limit or None])


def read_documents(settings: TextRunSettings) -> tuple[Dataset, Dataset]:
    """The documents to train on and those to measure on: ``validation``, or else the last hundredth."""
    where: dict[str, Any] = {"column": settings.column, "seed": settings.seed}
    data = load_text(settings.text, split=settings.split, limit=settings.max_documents, **where)
    if settings.validation:
        return data, load_text([settings.validation], split="validation", limit=max(1, len(data) // 100), **where)
    if len(data) < 2:
        raise OptionError("there is one document only, and the loss is measured on another; give --validation TEXT")
    held_out = max(1, len(data) // 100)
    return data.select(range(len(data) - held_out)), data.select(range(len(data) - held_out, len(data)))


def to_inputs(data: Dataset, tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    """Tokenise, join the documents by their end token, and cut into inputs of ``length`` tokens.

    A document that is longer than an input goes on in the next one; the tokens left over at the end of a batch of documents are
    an input of their own, so that short texts are not lost.
    """
    first, end = special_tokens(tokenizer)

    def encode(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        encoded = tokenizer(rows["text"], add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        stream = list(chain.from_iterable([*ids, *end] for ids in encoded))
        room = length - len(first)
        return {"input_ids": [first + stream[at : at + room] for at in range(0, len(stream), room)]}

    return data.map(encode, batched=True, batch_size=200, remove_columns=data.column_names)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What every input begins with and what every document ends with; either may be nothing."""
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    return [tokenizer.cls_token_id] if tokenizer.cls_token_id is not None else [], [end] if end is not None else []


def _load(source: str, split: str, column: str) -> Dataset:
    data = read_source(source, split)
    column = "text" if is_plain_text(source) else check_column(data, column, source, text=True)
    return data.select_columns([column]).rename_columns({} if column == "text" else {column: "text"})
