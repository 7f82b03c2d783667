"""transformers' Nyströmformer is recognised and adopted with equal outputs, whatever its head and settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.errors import CheckpointError, MaskError, OptionError

LENGTH = 192
HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForQuestionAnswering", "ForTokenClassification", "ForMultipleChoice")
SIZES: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 240,
    "segment_means_seq_len": LENGTH,
    "num_landmarks": 16,
    "conv_kernel_size": 9,
    "initializer_range": 0.2,
}
OWN = {"mechanism": "nystrom", "num_landmarks": 16, "conv_kernel": 9, "inv_coeff_init_option": "original", "landmarks_over": "text"}


@pytest.fixture
def nystromformer(tmp_path: Path) -> Callable[..., Path]:
    """nystromformer("ForMaskedLM", num_landmarks=8) -> the folder of that Nyströmformer of transformers."""

    def build(head: str, **changes: Any) -> Path:
        torch.manual_seed(0)
        model = getattr(transformers, f"Nystromformer{head}")(transformers.NystromformerConfig(**{**SIZES, **changes}))
        model.save_pretrained(tmp_path / "source")
        return tmp_path / "source"

    return build


@pytest.mark.parametrize("head", HEADS)
def test_every_head_is_adopted_with_equal_outputs(head: str, nystromformer: Callable[..., Path], tmp_path: Path) -> None:
    source = nystromformer(head)
    report = convert_checkpoint(source, tmp_path / "ours")
    assert report.passed
    assert not report.needs_training
    checks = {check.name: check for check in report.checks}
    compared = checks["equal to the source, without padding"]
    assert compared.status == "passed"
    assert compared.values["max_abs_difference"] <= 1e-4
    assert "hidden_states[2]" in compared.values["outputs"]
    step = checks["one step's gradients equal to the source's"]
    assert step.status == "passed"
    assert step.values["compared"] >= 2 * 17 + 5  # the tensors of two layers, the convolution among them, and of the embeddings
    assert report.plan["original_architecture"] == "nystromformer"
    counts = report.plan["tensor_counts"]
    assert counts["changed"] == 2
    assert counts["kept"] + 2 == len(load_file(source / "model.safetensors"))
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("long_nystromformer", [f"LongNystromformer{head}"])
    assert config["long_attention"] == OWN
    assert config["attention_probs_dropout_prob"] == 0.0


def test_the_convolution_moves_into_the_mechanism(nystromformer: Callable[..., Path], tmp_path: Path) -> None:
    source = nystromformer("ForMaskedLM")
    convert_checkpoint(source, tmp_path / "ours", verify=False)
    old, new = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "ours"))
    layer = "nystromformer.encoder.layer.1.attention.self"
    assert torch.equal(new[f"{layer}.long_attention.conv"], old[f"{layer}.conv.weight"][:, 0, :, 0])


def test_as_many_landmarks_as_tokens_is_full_attention_under_padding_too(nystromformer: Callable[..., Path], tmp_path: Path) -> None:
    report = convert_checkpoint(nystromformer("ForMaskedLM", num_landmarks=LENGTH), tmp_path / "ours")
    assert report.passed
    assert {check.name: check.status for check in report.checks}["equal to the source, with padding"] == "passed"
    assert report.plan["long_attention"]["num_landmarks"] == 240
    assert report.plan["long_attention"]["landmarks_over"] == "input"


def test_longer_texts_of_any_length_and_padding(nystromformer: Callable[..., Path], tmp_path: Path) -> None:
    report = convert_checkpoint(
        nystromformer("ForMaskedLM"), tmp_path / "ours", max_length=700, dtype="bf16", inv_coeff_init_option="exact"
    )
    assert report.passed
    assert report.plan["tensor_counts"]["extended"] == 1
    assert {check.name: check.status for check in report.checks}["padding changes nothing"] == "passed"
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    ids = torch.randint(5, 200, (1, 611))
    padded, mask = torch.nn.functional.pad(ids, (0, 50), value=1), torch.ones(1, 661, dtype=torch.long)
    mask[:, 611:] = 0
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, :611], model(ids).logits, atol=1e-4, rtol=0)


def test_another_mechanism_drops_the_convolution(nystromformer: Callable[..., Path], tmp_path: Path) -> None:
    report = convert_checkpoint(nystromformer("ForMaskedLM"), tmp_path / "ours", mechanism="window", window=32)
    assert report.passed
    assert report.needs_training
    dropped = [tensor for tensor in report.plan["changed_tensors"] if tensor["action"] == "dropped"]
    assert {tensor["reason"] for tensor in dropped} == {"not a parameter of the chosen mechanism"}


def test_global_tokens_are_refused(nystromformer: Callable[..., Path], tmp_path: Path) -> None:
    source = nystromformer("ForMaskedLM")
    with pytest.raises(OptionError, match="cannot pass global tokens to its attention"):
        convert_checkpoint(source, tmp_path / "other", mechanism="longformer", window=32)
    convert_checkpoint(source, tmp_path / "ours", verify=False)
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "ours")
    ids = torch.randint(5, 200, (1, LENGTH))
    with pytest.raises(MaskError, match="cannot pass a global_attention_mask"):
        model(ids, global_attention_mask=torch.ones_like(ids))


def test_the_source_itself_is_no_long_checkpoint(nystromformer: Callable[..., Path]) -> None:
    """Its convolutions have other names, so that reading it directly would lose them without a word."""
    source = nystromformer("ForMaskedLM")
    config = transformers.AutoConfig.for_model("long_nystromformer", **SIZES)
    with pytest.raises(CheckpointError, match=r"longattn convert"):
        transformers.AutoModelForMaskedLM.from_pretrained(source, config=config)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"segment_means_seq_len": 190}, "16 landmarks for 190 tokens does not run in"),
        ({"inv_coeff_init_option": True}, "inv_coeff_init_option=true does not run in transformers"),
        ({"architectures": ["NystromformerForPuzzles"]}, "which is not supported"),
        ({"max_position_embeddings": 77}, "says max_position_embeddings=77, but its table"),
    ],
)
def test_bad_sources_are_refused_in_one_sentence(config: dict[str, Any], sentence: str, nystromformer: Callable[..., Path]) -> None:
    source = nystromformer("Model")
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**values, **config}))
    with pytest.raises(CheckpointError, match=sentence):
        plan_conversion(source)


def test_a_damaged_convolution_is_found(nystromformer: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_longattn.conversion.long_models import nystromformer as converter

    monkeypatch.setattr(converter, "_kernel", lambda weight: weight[:, 0, :, 0].flip(1))
    with pytest.raises(CheckpointError, match=r"Verification failed.*must be equal"):
        convert_checkpoint(nystromformer("ForMaskedLM"), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
