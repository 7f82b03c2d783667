"""Documents with a tag for each word: reading, and windows for a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_longattn.data.rows import Roles, rows_of
from hf_longattn.data.sources import DataError
from hf_longattn.data.tokenization import IGNORED, reads_words
from hf_longattn.loading import call_tokenizer


def tagged_rows(source: str, split: str, roles: Roles, named: Mapping[str, str]) -> Dataset:
    """Documents as by :func:`.rows.rows_of`, with lists of ``words`` and of as many ``tags``. Those without words are left out."""
    data = rows_of(source, split, roles, named)
    for number, row in enumerate(data, 1):
        words, tags = map(len, (row["words"], row["tags"]))
        if words != tags:
            raise DataError(f"Row {number} of {source} has {words} words and {tags} tags; give a tag for every word.")
    data = data.filter(lambda row: bool(row["words"]))
    if not len(data):
        raise DataError(f"There are no words in {source}; give other data.")
    return data


def tag_names(*parts: Dataset) -> list[str]:
    """The tags of all parts: O first, then by the kind of entity."""
    tags: Iterable[str] = {tag for part in parts for row in part["tags"] for tag in row}
    return sorted(tags, key=lambda tag: (tag != "O", tag[2:], tag))


def to_windows(data: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, stride: int, names: list[str]) -> Dataset:
    """Model inputs of tagged documents, one for each window of a document; none if no word has a token.

    Args:
        stride: tokens that windows share, a quarter of ``length`` at most.

    Returns:
        A dataset with the tokenizer's columns, ``labels`` (of each word's first token, elsewhere -100, as in ``run_ner``),
        ``word_ids`` (-1 for none) and ``document`` (its number).
    """
    numbers = {name: number for number, name in enumerate(names)}
    settings: dict[str, Any] = {"truncation": True, "max_length": length, "stride": (share := min(stride, length // 4))}
    settings |= {"return_overflowing_tokens": True, "return_attention_mask": False, "is_split_into_words": True}
    joins = not reads_words(tokenizer)

    def encode(rows: dict[str, list[Any]], documents: list[int]) -> dict[str, list[Any]]:
        texts = [[f" {word}" if word and joins else word for word in words] for words in rows["words"]]
        encoded = call_tokenizer(tokenizer, texts, **settings)
        owners = encoded.pop("overflow_to_sample_mapping")
        windows = [[-1 if word is None else word for word in encoded.word_ids(window)] for window in range(len(owners))]
        labels = []
        for window, (owner, words) in enumerate(zip(owners, windows, strict=True)):
            before = -1
            if window and owners[window - 1] == owner:  # the word of the last token before the overlap, which may go on here
                before = [word for word in windows[window - 1] if word >= 0][-1 - share]
            labels.append([IGNORED] * len(words))
            for place, word in enumerate(words):
                if word >= 0 and word != before:
                    labels[-1][place] = numbers[rows["tags"][owner][word]]
                before = word if word >= 0 else before
        return {**encoded, "labels": labels, "word_ids": windows, "document": [documents[owner] for owner in owners]}

    rows = data.map(encode, with_indices=True, batched=True, batch_size=100, remove_columns=data.column_names)
    return rows if any(label != IGNORED for labels in rows["labels"] for label in labels) else rows.select([])
