"""Labelled documents: read, checked, split, and turned into inputs."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from hf_longattn.errors import OptionError
from hf_longattn.training.classification_settings import ClassificationSettings
from hf_longattn.training.sources import TextDataError, check_column, is_plain_text, read_labelled_folder, read_source

_FEATURES = Features({"text": Value("string"), "label": Value("string")})


def load_labelled(source: str, *, split: str = "train", text_column: str = "text", label_column: str = "label") -> Dataset:
    """Read documents and the names of their labels.

    Args:
        source: a folder with a sub-folder of text files for every label, or what :func:`read_source` takes.
        split: which split, where the source has several.
        text_column, label_column: names of columns; labels are names, whole numbers or ``datasets.ClassLabel``.

    Returns:
        A dataset with the columns ``text`` and ``label``, both text; rows without text are left out.

    Raises:
        TextDataError: the source cannot be read, a column is missing, or a row has no label or one that is no class.
    """
    path = Path(source)
    if path.is_dir() and is_plain_text(source):
        if not any(child.is_dir() for child in path.iterdir()):
            raise TextDataError(f"the folder {source!r} has no sub-folders; every label needs one, with its texts in it")
        data, text_column, label_column = read_labelled_folder(path), "text", "label"
    elif is_plain_text(source):
        raise TextDataError(f"{source!r} holds text without labels; give a table with two columns, or a folder with one per label")
    else:
        data = read_source(source, split)
        check_column(data, text_column, source, text=True)
        check_column(data, label_column, source)
    labels = _label_names(data, label_column, source)
    rows = [(text, label) for text, label in zip(data[text_column], labels, strict=True) if text and text.strip()]
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    return Dataset.from_dict(columns, features=_FEATURES)


def read_labelled(settings: ClassificationSettings) -> tuple[Dataset, Dataset]:
    """The documents to train on and those to measure on: ``validation``, or else a tenth.

    Raises:
        TextDataError: as :func:`load_labelled`; or fewer than two classes.
        OptionError: too few documents to hold some back.
    """
    columns = {"text_column": settings.text_column, "label_column": settings.label_column}
    data = concatenate_datasets([load_labelled(source, split=settings.split, **columns) for source in settings.data])
    order = list(range(len(data)))
    random.Random(settings.seed).shuffle(order)
    data = data.select(order[: settings.max_documents or None])
    if settings.validation:
        train, held_out = data, load_labelled(settings.validation, split=settings.validation_split, **columns)
    else:
        count = math.ceil(len(data) / 10)
        if len(data) - count < 2:
            raise OptionError(f"there are {len(data)} documents, too few to hold some back for measuring; give --validation DATA")
        train, held_out = data.select(range(len(data) - count)), data.select(range(len(data) - count, len(data)))
    if not len(held_out):
        raise TextDataError(f"there is no text in {settings.validation}")
    if len(set(train["label"])) < 2:
        raise TextDataError(
            f"all documents of {', '.join(settings.data)} have the label {train['label'][0]!r}; there is nothing to tell apart"
            if len(train) else f"there is no text in {', '.join(settings.data)}"
        )  # fmt: skip
    return train, held_out


def class_names(train: Dataset, known: Sequence[str]) -> list[str]:
    """The classes in the order of their numbers: as the model knows them, if it knows all; else sorted, numbers by their value."""
    found = set(train["label"])
    if found <= set(known):
        return list(known)
    numbers = all(name.lstrip("-").isdigit() for name in found)
    return sorted(found, key=(lambda name: (int(name), "")) if numbers else (lambda name: (0, name)))


def to_documents(data: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, names: Sequence[str]) -> Dataset:
    """Tokens, the label's number, ``length`` (tokens of the input) and ``document`` (tokens before it was cut).

    Raises:
        TextDataError: a label that is no class.
    """
    numbers = {name: number for number, name in enumerate(names)}
    unknown = sorted(set(data["label"]) - set(numbers))
    if unknown:
        raise TextDataError(f"the label {unknown[0]!r} of the validation data is none of the classes to learn ({', '.join(names)})")

    def encode(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        whole = tokenizer(rows["text"], return_attention_mask=False, verbose=False)["input_ids"]
        long = [row for row, ids in enumerate(whole) if len(ids) > length]
        inputs = list(whole)
        if long:
            texts = [rows["text"][row] for row in long]
            cut = tokenizer(texts, truncation=True, max_length=length, return_attention_mask=False)["input_ids"]
            for row, ids in zip(long, cut, strict=True):
                inputs[row] = ids
        return {
            "input_ids": inputs,
            "labels": [numbers[label] for label in rows["label"]],
            "length": [len(ids) for ids in inputs],
            "document": [len(ids) for ids in whole],
        }

    return data.map(encode, batched=True, batch_size=200, remove_columns=data.column_names)


def _label_names(data: Dataset, column: str, source: str) -> list[str]:
    feature, values = data.features[column], data[column]
    if isinstance(feature, ClassLabel):
        if any(value is None or value < 0 for value in values):
            raise TextDataError(f"{source} has rows without a label in the column {column!r}; leave them out")
        return [feature.names[value] for value in values]
    kind = getattr(feature, "dtype", "a list")
    if kind in ("float32", "float64") and all(value is not None and float(value).is_integer() for value in values):
        values = [int(value) for value in values]
    elif not (kind in ("string", "large_string", "bool") or kind.startswith(("int", "uint"))):
        raise TextDataError(
            f"the column {column!r} of {source} holds {kind}, but a class is a name or a whole number; name another with --label-column"
        )
    missing = next((row for row, value in enumerate(values) if value is None or value == ""), None)
    if missing is not None:
        raise TextDataError(f"row {missing + 1} of {source} has no label in the column {column!r}; leave such rows out")
    return [str(value) for value in values]
