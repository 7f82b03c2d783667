"""Fingerprints: digests of the data, weights or settings from which a result was computed.

They are stored with the result, and compared before the result is used again. Because a fingerprint depends only on
contents, a file that was moved, or written again with the same contents, keeps its fingerprint.
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
"""Bytes of a text's digest. Among a billion texts, two have the same digest with a probability of 1e-21."""
NOT_COMPARED = ("transformers_version", "_name_or_path")
"""Fields of a config that only say where it was written, and by which version of transformers."""


def of_text(text: str) -> str:
    """The fingerprint of a text. It takes a microsecond per thousand characters."""
    return hashlib.blake2b(text.encode(), digest_size=TEXT_BYTES).hexdigest()


def of_value(value: Any) -> str:
    """The fingerprint of a JSON value. The order of keys does not count. Other objects stand for their classes."""
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
    changed = config.to_diff_dict()  # without defaults, so that a new version of transformers may add fields
    return of_value({name: value for name, value in changed.items() if name not in NOT_COMPARED})


def of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """The fingerprint of a tokenizer's rules."""
    if not tokenizer.is_fast:
        return of_value([type(tokenizer).__name__, tokenizer.get_vocab(), tokenizer.init_kwargs])
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    # truncation and padding are no rules, but settings of the last call
    return of_value({**rules, "truncation": None, "padding": None})


def of_rows(rows: Dataset) -> str:
    """The fingerprint of all values of a dataset, in order, with the names of their columns."""
    digest = hashlib.blake2b()
    for table in rows.with_format("arrow").iter(1000):
        plain = table.combine_chunks().replace_schema_metadata(None)
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, plain.schema) as writer:
            writer.write_table(plain)
        digest.update(stream.getvalue())
    return digest.hexdigest()
