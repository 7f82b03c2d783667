"""Every head of transformers' LED and BigBird-Pegasus is adopted, and proved equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from hf_longattn.conversion import convert_checkpoint, inspect_checkpoint
from tests.cases import every_case

SIZES: dict[str, Any] = {
    "vocab_size": 211, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
}  # fmt: skip
LED = {**SIZES, "max_encoder_position_embeddings": 192, "max_decoder_position_embeddings": 64, "attention_window": [8, 16]}
BIGBIRD = {**SIZES, "max_position_embeddings": 256, "block_size": 16, "num_random_blocks": 2, "attention_dropout": 0.1}
HEADS = [
    *(("LED", "Bart", LED, head) for head in ("Model", "ForConditionalGeneration", "ForQuestionAnswering")),
    *(
        ("BigBirdPegasus", "BigBirdPegasus", BIGBIRD, head)
        for head in ("Model", "ForConditionalGeneration", "ForQuestionAnswering", "ForSequenceClassification", "ForCausalLM")
    ),
]


def saved(folder: Path, name: str, values: dict[str, Any], head: str) -> Path:
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}{head}")(getattr(transformers, f"{name}Config")(**values))
    with torch.no_grad():  # the usual initial values hardly let attention show in the outputs
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    model.save_pretrained(folder)
    return folder


@every_case(("name", "ours", "values", "head"), HEADS, of=3, ids=[f"{case[0]}{case[3]}" for case in HEADS])
def test_every_head_of_led_and_bigbird_pegasus_is_adopted_with_equal_outputs(
    name: str, ours: str, values: dict[str, Any], head: str, tmp_path: Path
) -> None:
    report = convert_checkpoint(saved(tmp_path / "theirs", name, values, head), tmp_path / "long")
    assert report.passed
    assert not report.needs_training
    assert report.plan["long_class"] == f"Long{ours}{head}"
    equal = [check for check in report.checks if check.name.startswith("equal to the source")]
    assert len(equal) == (2 if name == "LED" else 1)
    assert all(check.status == "passed" and check.values["max_abs_difference"] < 1e-4 for check in equal)
    assert report.plan["tensor_counts"]["added"] == report.plan["tensor_counts"]["dropped"] == 0


def test_adopted_bigbird_pegasus_keeps_settings_and_loads_from_its_source(tmp_path: Path) -> None:
    source = saved(tmp_path / "theirs", "BigBirdPegasus", BIGBIRD, "ForConditionalGeneration")
    convert_checkpoint(source, tmp_path / "long", verify=False)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "long")
    assert (config.attention_type, config.attention_dropout, config.sparse_attention_dropout) == ("original_full", 0.1, 0.0)
    assert config.long_attention.mechanism == "bigbird"
    assert inspect_checkpoint(tmp_path / "long").max_length == 256
    flown = transformers.AutoModelForSeq2SeqLM.from_pretrained(source, config=type(config).from_pretrained(source))
    assert flown.config.long_attention == config.long_attention
    written = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "long").state_dict()
    assert all(torch.equal(tensor, written[name]) for name, tensor in flown.state_dict().items())


def test_adopted_led_can_be_extended(tmp_path: Path) -> None:
    source = saved(tmp_path / "theirs", "LED", LED, "ForConditionalGeneration")
    report = convert_checkpoint(source, tmp_path / "long", max_length=400, max_decoder_length=100)
    assert report.passed
    assert (report.plan["old_length"], report.plan["new_length"]) == (192, 400)
    assert (report.plan["decoder"]["old_length"], report.plan["decoder"]["new_length"]) == (64, 100)
