"""Weights in .bin files are read when that is allowed, as from_pretrained reads them: tensors, and no code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import CheckpointError
from tests.cases import every_case

Checkpoint = Callable[..., Path]
ARGUMENTS = {"mechanism": "window", "window": 16, "max_length": 128}


def pickled(folder: Path, *, shards: int = 1, zipped: bool = True) -> Path:
    """Replace the safetensors file of a checkpoint by what old versions of transformers wrote."""
    state = transformers.AutoModelForPreTraining.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        return folder
    files = {name: f"pytorch_model-{index % shards + 1:05}-of-{shards:05}.bin" for index, name in enumerate(state)}
    for file in set(files.values()):
        torch.save({name: value for name, value in state.items() if files[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


@pytest.mark.parametrize(("shards", "zipped"), [(1, True), (1, False), (3, True)], ids=["one file", "old format", "shards"])
def test_pickled_checkpoint_is_converted_only_if_allowed(shards: int, zipped: bool, checkpoint: Checkpoint, tmp_path: Path) -> None:
    source, folder = pickled(checkpoint("GPT2LMHeadModel"), shards=shards, zipped=zipped), tmp_path / "results"
    folder.mkdir()
    with pytest.raises(CheckpointError, match="add --allow-pickle"):
        convert_checkpoint(source, folder / "long", **ARGUMENTS)
    report = convert_checkpoint(source, folder / "long", allow_pickle=True, **ARGUMENTS)
    assert report.verified
    assert report.plan["source"] == str(source)
    assert "equal" in next(check.detail for check in report.checks if check.name == "equal at the old length with full attention")
    assert [path.name for path in folder.iterdir()] == ["long"]
    assert [path.name for path in (folder / "long").glob("*.safetensors")] == ["model.safetensors"]
    assert not list((folder / "long").glob("*.bin"))


def test_pickled_tensor_under_two_names_is_written_once(checkpoint: Checkpoint, tmp_path: Path) -> None:
    convert_checkpoint(pickled(checkpoint("GPT2LMHeadModel")), tmp_path / "long", allow_pickle=True, **ARGUMENTS)
    written = load_file(tmp_path / "long" / "model.safetensors")
    assert len({"lm_head.weight", "transformer.wte.weight"} & written.keys()) == 1


def test_pickled_weights_of_another_dtype_than_the_config_are_rounded_as_it_says(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = pickled(checkpoint("BertForMaskedLM"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert convert_checkpoint(source, tmp_path / "long", allow_pickle=True, **ARGUMENTS).verified
    written = load_file(tmp_path / "long" / "model.safetensors")
    assert {value.dtype for value in written.values()} == {torch.bfloat16}


class Harmful:
    """What must never run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("harm"),)


@every_case(
    "content",
    [
        {"weight": Harmful()},
        {"state_dict": {"weight": torch.zeros(2)}},
        [torch.zeros(2)],
        {"weight": torch.zeros(2).to_sparse()},
        None,
    ],
    ids=["code", "nested", "list", "sparse", "damaged"],
)
@every_case("zipped", [True, False], ids=["zip", "old format"])
def test_pickle_of_anything_but_tensors_is_refused_and_runs_no_code(
    content: object, zipped: bool, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint("BertForMaskedLM")
    monkeypatch.chdir(tmp_path)
    (source / "model.safetensors").unlink()
    file = source / "pytorch_model.bin"
    torch.save({"weight": torch.randn(1000)} if content is None else content, file, _use_new_zipfile_serialization=zipped)
    if content is None:
        file.write_bytes(file.read_bytes()[:2000])
    sentence = r"^The \.bin files of .* hold more than tensors|cannot be loaded|tensors that a LongBertForMaskedLM needs are missing"
    with pytest.raises(CheckpointError, match=sentence):
        convert_checkpoint(source, tmp_path / "long", allow_pickle=True, **ARGUMENTS)
    assert not [*tmp_path.iterdir()]
