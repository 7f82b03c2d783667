"""Fingerprints of what a result depends on. They are stored beside it, and compared before it is used again.

A fingerprint is a digest of contents, so a file that was moved or written again with the same contents is the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

TEXT_BYTES = 16
"""Bytes of a text's digest: two of a billion texts are the same with a probability of 1e-21."""
NOT_COMPARED = ("transformers_version", "_name_or_path")
"""Fields of a config that say where and by which version it was written."""


def of_text(text: str) -> str:
    """The fingerprint of a text, which takes a microsecond for a thousand characters."""
    return hashlib.blake2b(text.encode(), digest_size=TEXT_BYTES).hexdigest()


def of_value(value: Any) -> str:
    """The fingerprint of a JSON value. The order of keys does not count."""
    return of_text(json.dumps(value, sort_keys=True, default=lambda other: type(other).__name__))


def of_weights(tensors: Mapping[str, Tensor]) -> str:
    """The fingerprint of names, shapes, dtypes and values of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def of_config(config: PreTrainedConfig) -> str:
    """The fingerprint of a config of transformers."""
    changed = config.to_diff_dict()  # without defaults, so that a new version may add fields
    return of_value({name: value for name, value in changed.items() if name not in NOT_COMPARED})


def of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """The fingerprint of a tokenizer's rules. Truncation and padding are settings of its last call."""
    if not tokenizer.is_fast:
        return of_value([type(tokenizer).__name__, tokenizer.get_vocab(), tokenizer.init_kwargs])
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    return of_value({**rules, "truncation": None, "padding": None})


def of_rows(rows: Dataset) -> str:
    """The fingerprint of all values of a dataset, in order, with the names of their columns."""
    digest = hashlib.blake2b()
    for table in rows.with_format("arrow").iter(1000):
        plain = table.combine_chunks().replace_schema_metadata(None)
        with pa.ipc.new_stream(stream := pa.BufferOutputStream(), plain.schema) as writer:
            writer.write_table(plain)
        digest.update(stream.getvalue())
    return digest.hexdigest()
