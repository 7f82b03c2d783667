"""transformers' BigBird is recognised and adopted with equal outputs, whatever its head and settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import hf_longattn
from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.errors import CheckpointError, MaskError
from tests.grids import quickly

LENGTH = 320
HEADS = (
    "Model", "ForPreTraining", "ForMaskedLM", "ForSequenceClassification", "ForQuestionAnswering", "ForTokenClassification",
    "ForMultipleChoice",
)  # fmt: skip
SIZES: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": LENGTH,
    "block_size": 16,
    "num_random_blocks": 2,
    "initializer_range": 0.2,
}
OWN = {"mechanism": "bigbird", "block_size": 16, "num_random_blocks": 2, "random_pattern": "hf_eval", "blocks_over": "input"}


@pytest.fixture
def big_bird(tmp_path: Path) -> Callable[..., Path]:
    """big_bird("ForMaskedLM", use_bias=False) -> the folder of that BigBird of transformers."""

    def build(head: str, **changes: Any) -> Path:
        model = getattr(transformers, f"BigBird{head}")(transformers.BigBirdConfig(**{**SIZES, **changes}))
        model.save_pretrained(tmp_path / "source")
        return tmp_path / "source"

    return build


@pytest.mark.parametrize("head", quickly(HEADS, ("Model", "ForPreTraining", "ForQuestionAnswering", "ForMultipleChoice")))
def test_every_head_of_big_bird_is_adopted_with_equal_outputs(head: str, big_bird: Callable[..., Path], tmp_path: Path) -> None:
    source = big_bird(head)
    report = convert_checkpoint(source, tmp_path / "ours")
    assert report.passed
    assert not report.needs_training
    checks = {check.name: check for check in report.checks}
    compared = checks["equal to the source, with padding"]
    assert compared.status == "passed"
    assert compared.values["length"] == LENGTH
    assert compared.values["max_abs_difference"] <= 1e-4
    assert "hidden_states[2]" in compared.values["outputs"]
    assert checks["padding changes nothing"].status == "skipped"
    assert report.plan["original_architecture"] == "big_bird"
    assert report.plan["tensor_counts"]["kept"] == len(load_file(source / "model.safetensors"))
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("long_big_bird", [f"LongBigBird{head}"])
    assert config["long_attention"] == OWN
    assert config["attention_probs_dropout_prob"] == 0.0


@pytest.mark.thorough
def test_adopted_big_bird_keeps_unusual_settings_and_is_extended(big_bird: Callable[..., Path], tmp_path: Path) -> None:
    source = big_bird("ForMaskedLM", rescale_embeddings=True, use_bias=False, hidden_act="relu")
    report = convert_checkpoint(source, tmp_path / "ours", max_length=2 * LENGTH, dtype="bf16")
    assert report.passed
    assert report.plan["tensor_counts"]["extended"] == 1
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert model.config.rescale_embeddings
    assert model.config.max_position_embeddings == 2 * LENGTH
    assert model(torch.randint(5, 200, (1, 2 * LENGTH))).logits.isfinite().all()


def test_big_bird_with_blocks_of_each_text_ignores_padding(big_bird: Callable[..., Path], tmp_path: Path) -> None:
    report = convert_checkpoint(big_bird("Model"), tmp_path / "ours", blocks_over="text")
    assert report.passed
    assert {check.name: check.status for check in report.checks}["padding changes nothing"] == "passed"
    assert report.plan["long_attention"] == {**OWN, "blocks_over": "text"}


def test_big_bird_refuses_two_questions_in_a_row(big_bird: Callable[..., Path]) -> None:
    """The head takes its logits out of the answers, so that a second one in the row would keep them."""
    model = hf_longattn.LongBigBirdForQuestionAnswering.from_pretrained(big_bird("ForQuestionAnswering"))
    with pytest.raises(MaskError, match="cannot tell its attention where each starts; give each document its own row"):
        model(torch.arange(5, 25)[None], documents=torch.tensor([[1] * 10 + [2] * 10]))


def test_adopted_big_bird_takes_another_mechanism_and_needs_training(big_bird: Callable[..., Path], tmp_path: Path) -> None:
    report = convert_checkpoint(big_bird("ForMaskedLM"), tmp_path / "ours", mechanism="window", window=32)
    assert report.passed
    assert report.needs_training


def test_big_bird_with_full_attention_is_adopted_as_such(big_bird: Callable[..., Path]) -> None:
    assert plan_conversion(big_bird("Model", attention_type="original_full")).attention.to_dict() == {"mechanism": "full"}


def test_big_bird_decoder_is_adopted_if_full_and_refused_if_block_sparse(big_bird: Callable[..., Path], tmp_path: Path) -> None:
    source = big_bird("ForCausalLM", is_decoder=True, attention_type="original_full")
    report = convert_checkpoint(source, tmp_path / "ours")
    assert report.passed
    assert not report.needs_training
    config = json.loads((source / "config.json").read_text()) | {"attention_type": "block_sparse"}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="sees future tokens in long texts"):
        plan_conversion(source)
