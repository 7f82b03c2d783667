"""Tensors are read one at a time or block by block, and kept ones are copied without being looked at."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hf_longattn.conversion import convert_checkpoint, plan_conversion, writing
from hf_longattn.conversion.config import ConversionConfig, shard_bytes
from hf_longattn.conversion.tensor_files import (
    TORCH_DTYPES,
    OutputTensor,
    read_blocks,
    read_headers,
    read_tensor,
    write_weights,
)
from hf_longattn.errors import CheckpointError, OptionError
from tests.cases import every_case

Checkpoint = Callable[..., Path]


def test_tensor_reader_reads_what_safetensors_reads(tmp_path: Path) -> None:
    values = {name: torch.arange(21).reshape(3, 7).to(dtype) for name, dtype in TORCH_DTYPES.items()}
    save_file({**values, "scalar": torch.tensor(2.5), "empty": torch.empty(0, 4)}, tmp_path / "all.safetensors")
    headers, expected = read_headers(tmp_path / "all.safetensors"), load_file(tmp_path / "all.safetensors")
    assert headers.keys() == expected.keys()
    for name, header in headers.items():
        read = read_tensor(header)
        assert (read.dtype, read.shape) == (expected[name].dtype, expected[name].shape)
        assert torch.equal(read.reshape(-1).view(torch.uint8), expected[name].reshape(-1).view(torch.uint8))
        blocks = [bytes(block) for block in read_blocks(header, size=8)]
        assert b"".join(blocks) == bytes(read.reshape(-1).view(torch.uint8).numpy())
        assert all(len(block) == 8 for block in blocks[:-1])
        if read.is_floating_point():
            cast = [bytes(block) for block in read_blocks(header, torch.bfloat16, size=16)]
            assert b"".join(cast) == bytes(read.to(torch.bfloat16).reshape(-1).view(torch.uint8).numpy())


def test_tensor_reader_refuses_a_file_that_shrinks_meanwhile(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(100)}, tmp_path / "one.safetensors")
    header = read_headers(tmp_path / "one.safetensors")["weight"]
    os.truncate(tmp_path / "one.safetensors", 200)
    for read in (read_tensor, lambda header: list(read_blocks(header))):
        with pytest.raises(CheckpointError, match="ends inside the tensor 'weight'"):
            read(header)


@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_conversion_loads_only_tensors_that_change(
    dtype: str | None, built: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(writing, "read_tensor", lambda header: loaded.append(header.name) or read_tensor(header))
    convert_checkpoint(built("BertForMaskedLM"), tmp_path / "long", mechanism="full", max_length=128, dtype=dtype, verify=False)
    assert loaded == ["bert.embeddings.position_embeddings.weight"]


def test_plan_of_a_terabyte_reads_its_header_alone(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("LlamaForCausalLM")
    config = json.loads((source / "config.json").read_text())
    rows = 8_000_000_000  # of 32 fp32 values: a terabyte
    (source / "config.json").write_text(json.dumps({**config, "vocab_size": rows, "tie_word_embeddings": True}))
    weights = source / "model.safetensors"
    with open(weights, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("lm_head.weight", None)
    header["model.embed_tokens.weight"]["shape"] = [rows, 32]
    end = 0
    for name in (name for name in header if name != "__metadata__"):
        count = 4 * torch.Size(header[name]["shape"]).numel()
        header[name]["data_offsets"] = [end, end := end + count]
    text = json.dumps(header).encode()
    weights.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(weights, 8 + len(text) + end)  # the data is a hole
    plan = plan_conversion(source, mechanism="window", window=16, max_length=65536)
    assert plan.total_bytes == end > 10**12
    assert [cost.length for cost in plan.costs][-1] == 65536
    with pytest.raises(CheckpointError, match=r"needs [\d,]+ MB, but .* MB free"):
        convert_checkpoint(source, tmp_path / "long", mechanism="window", window=16, max_length=65536)


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


def test_tensor_writer_writes_any_dtype_and_shape(tmp_path: Path) -> None:
    write_weights(tmp_path, {"model.safetensors": [output(name, values) for name, values in VALUES.items()]})
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == VALUES.keys()
    assert all(torch.equal(read[name], VALUES[name]) and read[name].dtype == VALUES[name].dtype for name in VALUES)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_tensor_writer_refuses_a_tensor_that_changed_meanwhile(tmp_path: Path) -> None:
    changed = OutputTensor("weight", torch.float32, (2, 2), lambda: torch.zeros(3))
    with pytest.raises(CheckpointError, match="the source changed while it was read"):
        write_weights(tmp_path, {"model.safetensors": [changed]})


@every_case("size", ["much", "5XB", "-3", "ééé", "", "0", "0GB", "nanMB", "infGB", "1e3MB", "٣", 0])
def test_conversion_refuses_what_is_no_shard_size(size: str | int) -> None:
    with pytest.raises(OptionError, match="not a shard size"):
        ConversionConfig(max_shard_size=size)


@pytest.mark.parametrize(("size", "read"), [("5", 5), (7, 7), ("2KB", 2000), ("1.5 mb", 1_500_000), ("3TB", 3 * 10**12)])
def test_shard_size_is_read_with_and_without_a_unit(size: str | int, read: int) -> None:
    assert shard_bytes(size) == read


@pytest.mark.thorough
def test_conversion_of_shards_writes_the_same_shards(built: Callable[[str], Path], tmp_path: Path) -> None:
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


@pytest.mark.thorough
@pytest.mark.parametrize(("size", "several"), [("1MB", True), ("1GB", False), (10_000_000, False)])
def test_shard_size_splits_or_joins_files(size: str | int, several: bool, built: Callable[[str], Path], tmp_path: Path) -> None:
    convert_checkpoint(built("RobertaForMaskedLM"), tmp_path / "long", mechanism="full", max_length=128, max_shard_size=size, verify=False)
    files = sorted(path.name for path in (tmp_path / "long").glob("*.safetensors"))
    assert (len(files) > 1) == several
    assert (files == ["model.safetensors"]) != several
    old = load_file(built("RobertaForMaskedLM") / "model.safetensors")
    new = {name: value for file in files for name, value in load_file(tmp_path / "long" / file).items()}
    assert old.keys() == new.keys()
    transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "long")
