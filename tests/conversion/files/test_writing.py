"""Weights are streamed into safetensors files that safetensors itself reads back, single and sharded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.conversion.files.writing import OutputTensor, split_by_size, write_weights
from hf_longattn.errors import CheckpointError


def output(name: str, values: torch.Tensor) -> OutputTensor:
    return OutputTensor(name, values.dtype, tuple(values.shape), lambda: values)


VALUES = {
    "half": torch.randn(3, 5).half(),
    "brain": torch.randn(7).bfloat16(),
    "flag": torch.tensor([True, False, True]),
    "double": torch.randn(2, 2).double(),
    "strided": torch.randn(6, 4).T,
    "scalar": torch.tensor(3),
    "empty": torch.empty(0, 4),
}


def test_any_dtype_and_shape_reads_back(tmp_path: Path) -> None:
    write_weights(tmp_path, {"model.safetensors": [output(name, values) for name, values in VALUES.items()]})
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == VALUES.keys()
    assert all(torch.equal(read[name], VALUES[name]) and read[name].dtype == VALUES[name].dtype for name in VALUES)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_weights(
        tmp_path,
        {"model.safetensors": [output(name, values) for name, values in VALUES.items()]},
        lambda done, total: seen.append((done, total)),
    )
    assert seen[-1][0] == seen[-1][1] == sum(values.numel() * values.element_size() for values in VALUES.values())


def test_a_tensor_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    changed = OutputTensor("weight", torch.float32, (2, 2), lambda: torch.zeros(3))
    with pytest.raises(CheckpointError, match="the source changed while it was read"):
        write_weights(tmp_path, {"model.safetensors": [changed]})


@pytest.mark.parametrize("size", ["much", "5XB", "-3"])
def test_a_shard_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(CheckpointError, match="not a shard size"):
        split_by_size([output("a", torch.zeros(4))], size)


def test_shards_in_shards_out(built: Callable[[str], Path], tmp_path: Path) -> None:
    model = transformers.AutoModelForMaskedLM.from_pretrained(built("BertForMaskedLM"))
    model.save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
    files = {path.name for path in (tmp_path / "sharded").glob("*.safetensors")}
    assert len(files) > 1
    report = convert_checkpoint(tmp_path / "sharded", tmp_path / "long", mechanism="window", window=16, max_length=128)
    assert report.passed
    assert {path.name for path in (tmp_path / "long").glob("*.safetensors")} == files
    index = json.loads((tmp_path / "long" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == files
    assert index["metadata"]["total_size"] == report.bytes_written


@pytest.mark.parametrize(("size", "several"), [("1MB", True), ("1GB", False), (10_000_000, False)])
def test_a_shard_size_splits_or_joins(size: str | int, several: bool, built: Callable[[str], Path], tmp_path: Path) -> None:
    convert_checkpoint(built("RobertaForMaskedLM"), tmp_path / "long", mechanism="full", max_length=128, max_shard_size=size, verify=False)
    files = sorted(path.name for path in (tmp_path / "long").glob("*.safetensors"))
    assert (len(files) > 1) == several
    assert (files == ["model.safetensors"]) != several
    old = load_file(built("RobertaForMaskedLM") / "model.safetensors")
    new = {name: value for file in files for name, value in load_file(tmp_path / "long" / file).items()}
    assert old.keys() == new.keys()
    transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "long")
