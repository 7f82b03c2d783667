"""A config that names no class: the weights say which one it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.errors import CheckpointError


def unnamed(folder: Path, **values: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": None, **values}))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "BertForMaskedLM",
        "BertForQuestionAnswering",
        "BertModel",
        "RobertaForSequenceClassification",
        "GPT2LMHeadModel",
        "LlamaForCausalLM",
        "BartForConditionalGeneration",
        "ElectraForPreTraining",
    ],
)
def test_the_class_is_that_of_the_weights(name: str, checkpoint: Callable[..., Path]) -> None:
    plan = plan_conversion(unnamed(checkpoint(name)))
    assert plan.architecture.source_class == {"GPT2LMHeadModel": "GPT2Model"}.get(name, name)
    assert not plan.counts()["dropped"]


def test_names_of_the_first_checkpoints(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = unnamed(checkpoint("BertForMaskedLM"))
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = load_file(source / "model.safetensors")
    for new, name in old.items():
        tensors = {key.replace(new, name): value for key, value in tensors.items()}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    report = convert_checkpoint(source, tmp_path / "long", mechanism="window", window=16, max_length=200)
    assert report.plan["source_class"] == "BertForMaskedLM"
    assert report.passed


def test_a_model_saved_without_its_pooler_is_compared_by_what_it_has(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = checkpoint("BertModel")
    tensors = {name: value for name, value in load_file(source / "model.safetensors").items() if "pooler" not in name}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    report = convert_checkpoint(source, tmp_path / "long", mechanism="window", window=16, max_length=200)
    [check] = [check for check in report.checks if check.name == "equal at the old length with full attention"]
    assert check.status == "passed"
    assert check.values["outputs"] == ["last_hidden_state"]


def test_an_unknown_class_is_named_as_it_stands(checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"is a MyBert, which has no long form; the supported bert classes are: BertForMaskedLM"):
        plan_conversion(unnamed(checkpoint("BertModel"), architectures=["MyBert"]))
