"""Fingerprints differ with the contents that they stand for, and with nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from transformers import BertConfig

from hf_longattn.data import fingerprints
from tests.trained import tokenizer_of

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1)}


@pytest.mark.parametrize(
    "other",
    [
        {"a": WEIGHTS["a"]},
        {**WEIGHTS, "a": WEIGHTS["a"].view(3, 2)},
        {**WEIGHTS, "a": WEIGHTS["a"].view(torch.int32)},
        {**WEIGHTS, "a": WEIGHTS["a"] + torch.eye(2, 3) * 1e-7},
        {"a": WEIGHTS["a"], "c": WEIGHTS["b"]},
    ],
)
def test_weights_of_other_names_shapes_types_and_values_have_another_fingerprint(other: dict[str, Any]) -> None:
    assert fingerprints.of_weights(other) != fingerprints.of_weights(WEIGHTS)
    assert fingerprints.of_weights(dict(reversed(WEIGHTS.items()))) == fingerprints.of_weights(WEIGHTS)
    assert fingerprints.of_weights({**WEIGHTS, "a": WEIGHTS["a"].T.contiguous().T}) == fingerprints.of_weights(WEIGHTS)


def test_rows_have_one_fingerprint_however_they_are_stored() -> None:
    rows = Dataset.from_dict({"ids": [[1, 2], [], [3]], "text": ["a", None, "c"]})
    expected = fingerprints.of_rows(rows)
    assert fingerprints.of_rows(concatenate_datasets([rows.select([0]), rows.select([1, 2])])) == expected
    assert fingerprints.of_rows(rows.select([2, 1, 0]).select([2, 1, 0])) == expected
    assert fingerprints.of_rows(rows.with_format("torch")) == expected
    for other in (
        rows.select([0, 2, 1]),
        rows.select([0, 1]),
        rows.rename_column("text", "body"),
        Dataset.from_dict({"ids": [[1], [2], [3]], "text": ["a", None, "c"]}),
        Dataset.from_dict({"ids": [[1, 2], [], [3]], "text": ["a", "", "c"]}),
    ):
        assert fingerprints.of_rows(other) != expected


def test_a_tokenizer_keeps_its_fingerprint_when_it_is_called() -> None:
    tokenizer = tokenizer_of("bert", 64)
    expected = fingerprints.of_tokenizer(tokenizer)
    tokenizer(["a text", "another text"], truncation=True, max_length=3, padding=True)
    assert fingerprints.of_tokenizer(tokenizer) == expected
    tokenizer.add_tokens(["covid"])
    assert fingerprints.of_tokenizer(tokenizer) != expected


def test_a_config_keeps_its_fingerprint_in_another_folder_and_version() -> None:
    config = BertConfig(hidden_size=32, num_attention_heads=2)
    expected = fingerprints.of_config(config)
    config._name_or_path, config.transformers_version = "elsewhere", "4.0"
    assert fingerprints.of_config(config) == expected
    config.layer_norm_eps = 0.1
    assert fingerprints.of_config(config) != expected
