"""Checkpoints of other long architectures are recognised, adopted tensor by tensor, and proved equal to transformers' own model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hf_longattn.conversion import convert_checkpoint, inspect_checkpoint, plan_conversion
from hf_longattn.conversion.long_models import CONVERTERS
from hf_longattn.errors import CheckpointError
from tests.grids import quickly

LENGTH = 192
WINDOWS = [8, 16]
HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForQuestionAnswering", "ForMultipleChoice", "Model", "ForTokenClassification")
SIZES: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": LENGTH + 2,
    "type_vocab_size": 1,
    "pad_token_id": 1,
}
OWN = {"mechanism": "longformer", "window": 8, "global_tokens": [], "separate_global": True, "layers": {"1": {"window": 16}}}


@pytest.fixture(scope="module")
def longformer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """longformer("ForMaskedLM") -> the folder of that HF Longformer; do not write into it."""
    made: dict[str, Path] = {}

    def build(head: str) -> Path:
        if head not in made:
            torch.manual_seed(0)
            model = getattr(transformers, f"Longformer{head}")(transformers.LongformerConfig(**SIZES, attention_window=WINDOWS))
            with torch.no_grad():  # the usual initial values hardly let attention show in the outputs
                for parameter in model.parameters():
                    if parameter.ndim == 2:
                        parameter.mul_(8)
            made[head] = tmp_path_factory.mktemp("longformers") / head
            model.save_pretrained(made[head])
        return made[head]

    return build


def rewritten(source: Path, folder: Path, rename: Callable[[str], str], **config: Any) -> Path:
    """A copy of a checkpoint with other tensor names and config values; a value of None takes one out."""
    folder.mkdir()
    tensors = load_file(source / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    values = {**json.loads((source / "config.json").read_text()), **config}
    (folder / "config.json").write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    return folder


@pytest.mark.usefixtures("from_their_files")
def test_adopted_longformer_is_compared_from_its_files(longformer: Callable[[str], Path], tmp_path: Path) -> None:
    checks = {check.name: check for check in convert_checkpoint(longformer("ForMaskedLM"), tmp_path / "ours").checks}
    assert checks["equal to the source, with padding and global tokens"].status == "passed"
    assert checks["how the models were run"].values["from_files"]


@pytest.mark.parametrize("head", quickly(HEADS, HEADS[:4]))
def test_every_head_of_longformer_is_adopted_with_equal_outputs(head: str, longformer: Callable[[str], Path], tmp_path: Path) -> None:
    report = convert_checkpoint(longformer(head), tmp_path / "ours")
    assert report.passed
    assert not report.needs_training
    checks = {check.name: check for check in report.checks}
    for name in ("equal to the source, with padding", "equal to the source, with padding and global tokens"):
        assert checks[name].status == "passed"
        assert checks[name].values["length"] == LENGTH
        assert checks[name].values["max_abs_difference"] <= 1e-4
        assert "hidden_states[2]" in checks[name].values["outputs"]
    assert report.plan["original_architecture"] == "longformer"
    assert report.plan["tensor_counts"]["added"] == report.plan["tensor_counts"]["dropped"] == 0
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("long_roberta", [f"LongRoberta{head}"])
    assert config["attention_window"] == WINDOWS
    assert transformers.AutoConfig.from_pretrained(tmp_path / "ours").long_attention.to_dict()["layers"] == OWN["layers"]


def test_global_projections_of_longformer_move_into_the_mechanism(longformer: Callable[[str], Path], tmp_path: Path) -> None:
    convert_checkpoint(longformer("ForMaskedLM"), tmp_path / "ours", verify=False)
    old, new = (load_file(folder / "model.safetensors") for folder in (longformer("ForMaskedLM"), tmp_path / "ours"))
    assert len(old) == len(new)
    layer = "encoder.layer.1.attention.self"
    assert torch.equal(new[f"roberta.{layer}.long_attention.separate.key.weight"], old[f"longformer.{layer}.key_global.weight"])
    assert torch.equal(new[f"roberta.{layer}.key.weight"], old[f"longformer.{layer}.key.weight"])


def test_adopted_longformer_can_be_sharded_cast_and_extended(longformer: Callable[[str], Path], tmp_path: Path) -> None:
    report = convert_checkpoint(longformer("ForMaskedLM"), tmp_path / "ours", max_length=3 * LENGTH, max_shard_size="60KB", dtype="bf16")
    assert report.passed
    assert (tmp_path / "ours" / "model.safetensors.index.json").is_file()
    assert report.plan["tensor_counts"]["extended"] == 1
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "ours")
    assert model.dtype == torch.bfloat16
    assert model.config.max_position_embeddings == 3 * LENGTH + 2


def test_plan_of_longformer_shows_where_tensors_come_from(longformer: Callable[[str], Path]) -> None:
    plan = plan_conversion(longformer("Model"))
    assert plan.attention.to_dict() == OWN
    changed = {tensor["name"]: tensor for tensor in plan.to_dict()["changed_tensors"]}
    moved = changed["encoder.layer.0.attention.self.long_attention.separate.query.bias"]
    assert moved["from"] == "encoder.layer.0.attention.self.query_global.bias"
    assert inspect_checkpoint(longformer("Model")).attention.to_dict() == OWN


def test_given_option_replaces_that_of_the_adopted_longformer(longformer: Callable[[str], Path], tmp_path: Path) -> None:
    report = convert_checkpoint(longformer("ForMaskedLM"), tmp_path / "ours", window=12)
    assert report.plan["long_attention"] == {name: value for name, value in {**OWN, "window": 12}.items() if name != "layers"}
    assert report.passed
    assert report.needs_training


def test_another_mechanism_drops_the_global_projections_of_longformer(longformer: Callable[[str], Path], tmp_path: Path) -> None:
    report = convert_checkpoint(longformer("ForMaskedLM"), tmp_path / "ours", mechanism="window", window=8)
    assert report.passed
    assert report.needs_training
    dropped = [tensor for tensor in report.plan["changed_tensors"] if tensor["action"] == "dropped"]
    assert len(dropped) == 12
    assert {tensor["reason"] for tensor in dropped} == {"not a parameter of the chosen mechanism"}


def test_verification_finds_swapped_global_projections_of_longformer(
    longformer: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values swapped: the tensors all fit, only the outputs tell."""
    (converter,) = (one for one in CONVERTERS if type(one).__name__ == "LongformerConverter")
    move = type(converter).rename

    def swapped(self: Any, name: str, config: Any) -> Any:
        return move(self, name.replace("key_global", "x").replace("value_global", "key_global").replace("x", "value_global"), config)

    monkeypatch.setattr(type(converter), "rename", swapped)
    with pytest.raises(CheckpointError, match=r"Verification failed.*with padding and global tokens.*must be equal"):
        convert_checkpoint(longformer("ForMaskedLM"), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"architectures": ["LongformerForPuzzles"]}, "which is not supported; the supported longformer classes are .*LongformerModel"),
        ({"max_position_embeddings": 77}, "says max_position_embeddings=77, but its table"),
        ({"model_type": "longfromer"}, "not supported.*longformer"),
        ({"attention_window": [8]}, "attention_window names 1 layers, but the model has 2"),
    ],
)
def test_adoption_refuses_a_wrong_longformer_config_in_one_sentence(
    config: dict[str, Any], sentence: str, longformer: Callable[[str], Path], tmp_path: Path
) -> None:
    source = rewritten(longformer("Model"), tmp_path / "source", str, **config)
    with pytest.raises(CheckpointError, match=sentence):
        plan_conversion(source)
