"""Documents with a tag for each word: reading, and windows for a model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Json, List, Value
from transformers import PreTrainedTokenizerBase

from hf_longattn.data.rows import Roles, rows_of
from hf_longattn.data.sources import CONLL, UTF_8, DataError, check_column, label_reader, read_source
from hf_longattn.data.tokenization import IGNORED, reads_words
from hf_longattn.errors import encoding_sentence
from hf_longattn.loading import call_tokenizer

TAGGED = Features({"words": List(Value("string")), "tags": List(Value("string"))})
"""Features of :func:`read_words`."""
WORDS = ("tokens", "words")
"""Columns of words that need not be named."""
DOCUMENT = ("-DOCSTART-", "#begin document", "#end document")
"""Beginnings of the lines around the documents of a CoNLL file."""
PART = re.compile(r"\d+[-.]\d+")
"""CoNLL-U's number of a range of words (1-2), or of an empty node (1.1)."""
IOB_TAG = re.compile("O|[BIESLU]-.+")
"""A tag of a named entity, or of none."""


ROLES = {"words": WORDS, "tags": ("ner_tags", "tags")}
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


def read_words(source: str, split: str, words_column: str | None, tags_column: str) -> Dataset:
    """Read tagged documents. Documents without words are left out.

    Args:
        source: a CoNLL file (see :func:`read_conll`), or as for :func:`.sources.read_source`.
        words_column, tags_column: lists of the same length; tags are names, or numbers of a ``datasets.ClassLabel``. ``None`` = the first
            of :data:`WORDS` that the data have.

    Raises:
        DataError: the source cannot be read, lacks a column, or has no words or missing tags.
    """
    if Path(source).suffix.lower() in CONLL:
        return read_conll(Path(source))
    data = read_source(source, split, CONLL)
    column = words_column or next((name for name in WORDS if name in data.column_names), WORDS[0])
    check_column(data, column, source, "--words-column")
    check_column(data, tags_column, source, "--tags-column")
    feature = data.features[tags_column]
    while isinstance(feature, List):
        feature = feature.feature
    if isinstance(feature, Json) or feature == Value("null"):  # values of several types, lists in some rows, or no tags
        parts = chain.from_iterable(tags for tags in data[tags_column] if isinstance(tags, list))
        kinds = {type(tag) for part in parts for tag in (part if isinstance(part, list) else [part]) if tag is not None}
        feature = Value("string") if kinds <= {str} else Value("int64") if kinds == {int} else feature
    names = feature.names if isinstance(feature, ClassLabel) else None
    name_of = label_reader(feature, tags_column, source, "--tags-column")

    def as_names(row: dict[str, Any], number: int) -> dict[str, list[Any]]:
        words, tags = row[column], row[tags_column]
        if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags) or None in tags:
            raise DataError(
                f"Row {number + 1} of {source}: {column!r} and {tags_column!r} must be lists of the same length, a tag for every word."
            )
        if names is not None and any(not 0 <= tag < len(names) for tag in tags):
            raise DataError(f"Row {number + 1} of {source} has the tag {max(tags, key=abs)}, but the classes are 0 to {len(names) - 1}.")
        if wrong := [word for word in words if not isinstance(word, (str, int, float))]:
            shown = json.dumps(wrong[0], default=str)
            raise DataError(f"Row {number + 1} of {source} has the word {shown:.40}; a word is a text or a number.")
        texts = [word if isinstance(word, str) else json.dumps(word).removesuffix(".0") for word in words]  # Arrow: 1 is 1.0 beside 2.5
        return {"words": texts, "tags": [name_of(tag, number) for tag in tags]}

    tagged = data.map(as_names, with_indices=True, remove_columns=data.column_names, features=TAGGED)
    tagged = tagged.filter(lambda row: bool(row["words"]))
    if not len(tagged):
        raise DataError(f"There are no words in {source}; give other data.")
    return tagged


def read_conll(path: Path) -> Dataset:
    """A word and its tag in a line, the first and the last column; -DOCSTART- lines, or else blank ones, separate documents.

    If the first of three or more columns numbers the words of every sentence (CoNLL-U), the word is the second column, and its tag the last
    one of B-, I- and O, if there is one. Lines of ranges (1-2) and empty nodes (1.1) are left out. Tabs separate the columns, or spaces in
    a file without tabs. Lines end with ``\\n`` or ``\\r\\n``. All other white space belongs to the words. At the start of a sentence a line
    that begins with # is a comment, as in CoNLL-U, unless it has the columns and tag of a word.

    Raises:
        DataError: there is no such file, it is not UTF-8, it is of CoNLL-2012, a word without a tag, or no words.
    """
    if not path.is_file():
        raise DataError(f"Data file {str(path)!r} does not exist; correct its name.")
    try:
        lines = [line.removesuffix("\r") for line in path.read_bytes().decode(UTF_8).split("\n")]
    except UnicodeDecodeError as error:
        raise DataError(encoding_sentence(path, error)) from error
    groups = groupby(lines, lambda line: bool(line.strip(" \t")))
    surely_words = [[line for line in group if not line.startswith(("#", *DOCUMENT))] for filled, group in groups if filled]
    separator = "\t" if any("\t" in line for line in chain(*surely_words)) else " "
    filled_width = max((len(line.rstrip(" \t").split("\t")) for line in chain(*surely_words)), default=0)

    def columns_of(line: str) -> list[str]:
        filled = line.rstrip(" \t").split(separator)
        if separator == " " or filled == [""]:
            return [column for column in filled if column]
        return line.split("\t")[: max(filled_width, len(filled))]  # tabs at the ends of all lines separate nothing

    sentences = [[columns_of(line) for line in group] for group in surely_words]

    def counts(place: int) -> bool:
        """Whether a column numbers the words of every sentence, from 0 or 1."""
        numbers = [[cell for columns in sentence for cell in columns[place:][:1] if not PART.fullmatch(cell)] for sentence in sentences]
        return all(column in ([*map(str, range(start, start + len(column)))] for start in (0, 1)) for column in numbers)

    widths, tags = {len(columns) for columns in chain(*sentences)}, {columns[-1] for columns in chain(*sentences)}
    width, word_column, tag_column = max(widths, default=0), 0, -1
    if width > 2 and counts(0):
        rows = [columns for columns in chain(*sentences) if not PART.fullmatch(columns[0])]
        cells = {place: {columns[place] for columns in rows if columns[place:]} - {""} for place in range(2, width)}
        entities = [place for place, tags_of in cells.items() if tags_of and all(map(IOB_TAG.fullmatch, tags_of))]
        word_column, tag_column = 1, max(entities, default=-1)
        if not entities and width == 10:  # the last column is one of remarks
            raise DataError(f"{str(path)!r} is CoNLL-U without a column of B-, I- and O; write a word and its tag in each line.")
    elif width >= 10 and counts(2):
        raise DataError(f"{str(path)!r} is in the format of CoNLL-2012; write a word and its tag (B-PERSON, O) in each line.")
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
            missing, tabs = "tag" if word else "word", "tabs" if separator == "\t" else "spaces"
            raise DataError(
                f"Line {number} of {str(path)!r} has no {missing}; a line is a word and its tag, separated by {tabs}, and ends with \\n."
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
