"""Files of torch.save are read when that is allowed: the tensors in them, each when its turn comes, and no code."""

from __future__ import annotations

import json
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.conversion.sources.pickled import read_pickled_headers
from hf_longattn.conversion.tensor_files import read_tensor
from hf_longattn.errors import CheckpointError
from tests.cells import every_cell

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


@pytest.mark.thorough
@pytest.mark.usefixtures("from_their_files")
def test_it_is_verified_without_loading_it_whole(checkpoint: Checkpoint, tmp_path: Path) -> None:
    report = convert_checkpoint(pickled(checkpoint("GPT2LMHeadModel"), shards=3), tmp_path / "long", allow_pickle=True, **ARGUMENTS)
    assert {check.name: check.status for check in report.checks}["equal at the old length with full attention"] == "passed"


@pytest.mark.thorough
@pytest.mark.parametrize(("shards", "zipped"), [(1, True), (1, False), (3, True)], ids=["one file", "old format", "shards"])
def test_a_pickled_checkpoint_converts_when_allowed(shards: int, zipped: bool, checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = pickled(checkpoint("GPT2LMHeadModel"), shards=shards, zipped=zipped)
    for refuse in (convert_checkpoint, plan_conversion):
        with pytest.raises(CheckpointError, match="add --allow-pickle"):
            refuse(source, tmp_path / "long", **ARGUMENTS)
    report = convert_checkpoint(source, tmp_path / "long", allow_pickle=True, **ARGUMENTS)
    assert report.passed
    assert "equal" in next(check.detail for check in report.checks if check.name == "equal at the old length with full attention")
    files = sorted(path.name for path in (tmp_path / "long").glob("*.safetensors"))
    assert files == (["model.safetensors"] if shards == 1 else [f"model-{index:05}-of-00003.safetensors" for index in (1, 2, 3)])
    assert not list((tmp_path / "long").glob("*.bin"))


@pytest.mark.thorough
def test_a_tensor_under_two_names_is_written_once(checkpoint: Checkpoint, tmp_path: Path) -> None:
    report = convert_checkpoint(pickled(checkpoint("GPT2LMHeadModel")), tmp_path / "long", allow_pickle=True, dtype="bf16", **ARGUMENTS)
    dropped = [tensor for tensor in report.plan["changed_tensors"] if tensor["action"] == "dropped"]
    assert [(tensor["name"], tensor["reason"]) for tensor in dropped] == [("lm_head.weight", "tied to transformer.wte.weight")]
    written = load_file(tmp_path / "long" / "model.safetensors")
    assert "lm_head.weight" not in written
    assert {value.dtype for value in written.values()} == {torch.bfloat16}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_any_stride_and_dtype_reads_back(zipped: bool, tmp_path: Path) -> None:
    base = torch.randn(50, 3)
    state = OrderedDict(
        base=base,
        transposed=base.T,
        part=base[3:5, 1:],
        spread=base.expand(2, 50, 3),
        brain=torch.randn(7).bfloat16(),
        scalar=torch.tensor(3),
        empty=torch.empty(0, 4),
        parameter=torch.nn.Parameter(torch.randn(3)),
    )
    torch.save(state, tmp_path / "one.bin", _use_new_zipfile_serialization=zipped)
    headers = read_pickled_headers(tmp_path / "one.bin")
    assert headers.keys() == state.keys()
    for name, value in state.items():
        read = read_tensor(headers[name])
        assert torch.equal(read, value)
        assert read.dtype == value.dtype == headers[name].dtype


class Harmful:
    """What must never run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("harm"),)


@every_cell(
    ("content", "sentence"),
    [
        ({"weight": Harmful()}, "holds more than tensors"),
        ({"state_dict": {"weight": torch.zeros(2)}}, "no flat dictionary of tensors, but 'state_dict', which is a dict"),
        ([torch.zeros(2)], "no flat dictionary of tensors, but a list"),
        ({"weight": torch.zeros(2).to_sparse()}, "which safetensors cannot hold"),
        ({"weight": torch.zeros(2, dtype=torch.complex64)}, "which safetensors cannot hold"),
    ],
    ids=["code", "nested", "list", "sparse", "complex"],
)
@every_cell("zipped", [True, False], ids=["zip", "old format"])
def test_anything_else_is_a_sentence(
    content: object, sentence: str, zipped: bool, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint("BertForMaskedLM")
    monkeypatch.chdir(tmp_path)
    (source / "model.safetensors").unlink()
    torch.save(content, source / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=sentence):
        convert_checkpoint(source, tmp_path / "long", allow_pickle=True, **ARGUMENTS)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("damage", ["half", "empty", "text", "compressed", "other byte order"])
def test_damaged_files_are_a_sentence(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save({"weight": torch.randn(1000)}, file)
    content = file.read_bytes()
    if damage in ("compressed", "other byte order"):
        with zipfile.ZipFile(file) as opened:
            records = {record.filename: opened.read(record) for record in opened.infolist()}
        records = {name: b"big" if name.endswith("byteorder") and damage != "compressed" else value for name, value in records.items()}
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if damage == "compressed" else zipfile.ZIP_STORED) as opened:
            for name, value in records.items():
                opened.writestr(name, value)
    else:
        file.write_bytes({"half": content[: len(content) // 2], "empty": b"", "text": b"no weights"}[damage])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        read_pickled_headers(file)
