"""Documents with a tag for each word: reading, and windows for a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from hf_longattn.data.rows import Roles, rows_of
from hf_longattn.data.sources import CONLL, UTF_8, DataError
from hf_longattn.data.tokenization import IGNORED, reads_words
from hf_longattn.errors import encoding_sentence
from hf_longattn.loading import call_tokenizer

TAGGED = Features({"words": List(Value("string")), "tags": List(Value("string"))})
"""Features of tagged documents."""
DOCUMENT = ("-DOCSTART-", "#begin document", "#end document")
"""Beginnings of the lines around the documents of a CoNLL file."""
PART = re.compile(r"\d+[-.]\d+")
"""CoNLL-U's number of a range of words (1-2), or of an empty node (1.1)."""
IOB_TAG = re.compile("O|[BIESLU]-.+")
"""A tag of a named entity, or of none."""


ROLES: dict[str, tuple[str, ...]] = {"words": ("tokens", "words"), "tags": ("ner_tags", "tags")}
"""Columns that are recognised."""


def tagged_rows(source: str, split: str, roles: Roles, named: Mapping[str, str]) -> Dataset:
    """Documents with the columns ``words`` and ``tags``, lists of texts of the same length. Documents without words are left out.

    Args:
        source: a CoNLL file (see :func:`read_conll`), or as for :func:`.rows.rows_of`.

    Raises:
        DataError: the source cannot be read, lacks a column, or has no words or missing tags.
    """
    if Path(source).suffix.lower() in CONLL:
        return read_conll(Path(source))
    data = rows_of(source, split, roles, named)
    for number, row in enumerate(data, 1):
        words, tags = map(len, (row["words"], row["tags"]))
        if words != tags:
            raise DataError(f"Row {number} of {source} has {words} words and {tags} tags; give a tag for every word.")
    data = data.filter(lambda row: bool(row["words"]))
    if not len(data):
        raise DataError(f"There are no words in {source}; give other data.")
    return data


def read_conll(path: Path) -> Dataset:
    """A word and its tag in a line, the first and the last column; -DOCSTART- lines, or else blank ones, separate documents.

    If the first of three or more columns numbers the words (CoNLL-U), the word is the second column, and its tag the last one of B-, I- and
    O, if there is one. Lines of ranges (1-2) and empty nodes (1.1) are left out. Tabs separate the columns, or spaces in a file without
    tabs. Lines end with ``\\n`` or ``\\r\\n``. All other white space belongs to the words. At the start of a sentence a line that begins
    with # is a comment, as in CoNLL-U, unless it has the columns and tag of a word.

    Raises:
        DataError: there is no such file, it is not UTF-8, it has a word without a tag, or no words.
    """
    if not path.is_file():
        raise DataError(f"Data file {str(path)!r} does not exist; correct its name.")
    try:
        lines = [line.removesuffix("\r") for line in path.read_bytes().decode(UTF_8).split("\n")]
    except UnicodeDecodeError as error:
        raise DataError(encoding_sentence(path, error)) from error
    of_words = [line for line in lines if line.strip(" \t") and not line.startswith(("#", *DOCUMENT))]
    tabs = any("\t" in line for line in of_words)
    filled_width = max((len(line.rstrip(" \t").split("\t")) for line in of_words), default=0)

    def columns_of(line: str) -> list[str]:
        filled = line.rstrip(" \t").split("\t" if tabs else " ")
        if tabs and filled != [""]:
            return line.split("\t")[: max(filled_width, len(filled))]  # tabs at the ends of all lines separate nothing
        return [column for column in filled if column]

    rows = list(map(columns_of, of_words))
    widths, tags = set(map(len, rows)), {columns[-1] for columns in rows}
    width, word_column, tag_column = max(widths, default=0), 0, -1
    numbered = [columns for columns in rows if not PART.fullmatch(columns[0])]
    numbers = [int(columns[0]) if columns[0].isdecimal() else -1 for columns in numbered]
    if width > 2 and all(number in (0, 1, before + 1) and number >= 0 for before, number in pairwise([0, *numbers])):
        cells = {place: {columns[place] for columns in numbered if columns[place:]} - {""} for place in range(2, width)}
        entities = [place for place, tags_of in cells.items() if tags_of and all(map(IOB_TAG.fullmatch, tags_of))]
        word_column, tag_column = 1, max(entities, default=-1)
        if not entities and width == 10:  # the last column is one of remarks
            raise DataError(f"{str(path)!r} is CoNLL-U without a column of B-, I- and O; write a word and its tag in each line.")
    marked = any(line.startswith(DOCUMENT) for line in lines)
    documents: list[tuple[list[str], list[str]]] = [([], [])]
    starts_sentence = True
    for number, line in enumerate(lines, start=1):
        columns = columns_of(line)
        if not columns or line.startswith(DOCUMENT):
            starts_sentence = True
            if columns or not marked:
                documents.append(([], []))
            continue
        is_word = len(columns) in widths and (columns[-1] in tags or IOB_TAG.fullmatch(columns[-1]) is not None)
        if (starts_sentence and line.startswith("#") and not is_word) or (word_column and (line[0] == "#" or PART.fullmatch(columns[0]))):
            continue
        starts_sentence = False
        word, tag = "".join(columns[word_column : word_column + 1]), "".join(columns[tag_column:][:1]).strip(" ")
        if not word or not tag or len(columns) < word_column + 2 or "\r" in line:
            missing, between = "tag" if word else "word", "tabs" if tabs else "spaces"
            raise DataError(
                f"Line {number} of {str(path)!r} has no {missing}; a line is a word and its tag, separated by {between}, and ends with \\n."
            )
        documents[-1][0].append(word)
        documents[-1][1].append(tag)
    filled = [document for document in documents if document[0]]
    if not filled:
        raise DataError(f"There are no words in {str(path)!r}; give other data.")
    return Dataset.from_dict({"words": [words for words, _ in filled], "tags": [tags for _, tags in filled]}, features=TAGGED)


def tag_names(*parts: Dataset) -> list[str]:
    """The tags of all parts: O first, then by the kind of entity."""
    tags: Iterable[str] = {tag for part in parts for row in part["tags"] for tag in row}
    return sorted(tags, key=lambda tag: (tag != "O", tag[2:], tag))


def to_windows(data: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, stride: int, names: list[str]) -> Dataset:
    """Model inputs of tagged documents, one for each window of a document; none if no word has a token.

    Args:
        stride: tokens that windows share, a quarter of ``length`` at most.
        names: the tags in the order of their numbers.

    Returns:
        A dataset with the tokenizer's columns, ``labels`` (of each word's first token, elsewhere -100, as in ``run_ner``),
        ``word_ids`` (-1 for none), ``document`` (its number) and ``length``.
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
        lengths = {"document": [documents[owner] for owner in owners], "length": list(map(len, windows))}
        return {**encoded, "labels": labels, "word_ids": windows, **lengths}

    rows = data.map(encode, with_indices=True, batched=True, batch_size=100, remove_columns=data.column_names)
    return rows if any(label != IGNORED for labels in rows["labels"] for label in labels) else rows.select([])
