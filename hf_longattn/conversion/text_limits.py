"""How many tokens of a text the files of a tokenizer and of sentence-transformers let a model read.

A conversion raises these limits and keeps the former ones in tokenizer_config.json, a file that trainers write again with all its fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..reading import read_json_object
from .tensor_files import write_json

FIELD_BEFORE = "extended_from"
"""The field of a tokenizer's or processor's file with its limits or sizes before the conversion."""
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_LIMIT, SENTENCE_LIMIT = "model_max_length", "max_seq_length"
"""Fields of the tokenizer's config and of that of sentence-transformers."""


def limits_before(folder: Path) -> dict[str, int]:
    """The limits of a checkpoint before it was converted, by field."""
    return _limits(_tokenizer_values(folder).get(FIELD_BEFORE))


def tokenizer_limit(folder: Path) -> int | None:
    """The limit of a folder's tokenizer, if its config has one."""
    return _limits(_tokenizer_values(folder)).get(TOKENIZER_LIMIT)


def remember_limit(folder: Path, name: str, limit: int) -> None:
    """Keep a former limit in the config of the tokenizer in ``folder``, if there is one."""
    if values := _tokenizer_values(folder):
        write_json(folder / TOKENIZER_CONFIG, {**values, FIELD_BEFORE: {**limits_before(folder), name: limit}})


def limited_tokenizer(values: Mapping[str, Any], length: int) -> dict[str, Any]:
    """The values of a tokenizer_config.json with another limit; a smaller one from before is kept in it."""
    limit = _limits(values).get(TOKENIZER_LIMIT, length)
    limited = {**values, TOKENIZER_LIMIT: length}
    if limit < length:
        limited[FIELD_BEFORE] = {TOKENIZER_LIMIT: limit}
    elif limit > length:
        limited.pop(FIELD_BEFORE, None)
    return limited


def _tokenizer_values(folder: Path) -> dict[str, Any]:
    file = folder / TOKENIZER_CONFIG
    return read_json_object(file) if file.is_file() else {}


def _limits(values: object) -> dict[str, int]:
    """The fields of ``values`` that are a number of tokens."""
    fields = values.items() if isinstance(values, Mapping) else ()
    return {name: value for name, value in fields if isinstance(value, int) and not isinstance(value, bool) and value > 0}
