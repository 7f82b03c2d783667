"""transformers' Longformer, LED, BigBird and BigBird-Pegasus become Long models with equal outputs, whatever their
heads and settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import hf_longattn
from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.conversion.adopt import ADOPTIONS
from hf_longattn.errors import CheckpointError, InputError
from tests.cases import every_case
from tests.reports import statuses
from tests.saved import change_json, read_json

LENGTH = 192
ENCODER: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 211,
}
STACKS: dict[str, Any] = {
    "vocab_size": 211,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
WINDOWS, BLOCKS = (
    {"attention_window": [8, 16]},
    {"max_position_embeddings": LENGTH, "block_size": 16, "num_random_blocks": 2},
)
VALUES: dict[str, dict[str, Any]] = {
    "Longformer": {
        **ENCODER,
        **WINDOWS,
        "max_position_embeddings": LENGTH + 2,
        "type_vocab_size": 1,
        "pad_token_id": 1,
    },
    "BigBird": {**ENCODER, **BLOCKS},
    "LED": {**STACKS, **WINDOWS, "max_encoder_position_embeddings": LENGTH, "max_decoder_position_embeddings": 64},
    "BigBirdPegasus": {**STACKS, **BLOCKS, "attention_dropout": 0.1},
}
TEXT = (
    "Model",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForQuestionAnswering",
    "ForTokenClassification",
    "ForMultipleChoice",
)
SUMMARY = ("Model", "ForConditionalGeneration", "ForQuestionAnswering")
HEADS = {
    "Longformer": TEXT[:-1],  # multiple choice is refused
    "BigBird": (*TEXT, "ForPreTraining"),
    "LED": SUMMARY,
    "BigBirdPegasus": (*SUMMARY, "ForSequenceClassification", "ForCausalLM"),
}
BASES = {"Longformer": "Roberta", "LED": "Bart"}
"""Stem of the Long class, where it is not the source's."""
WINDOW = {"mechanism": "longformer", "window": 8, "global_tokens": [], "separate_global": True}
BLOCK = {
    "mechanism": "bigbird",
    "block_size": 16,
    "num_random_blocks": 2,
    "random_pattern": "hf_eval",
    "blocks_over": "input",
}
ATTENTION = {"LongformerModel": {**WINDOW, "layers": {"1": {"window": 16}}}, "BigBirdModel": BLOCK}

Saved = Callable[..., Path]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """saved("LED", "Model", **changes) -> the folder of that model of transformers."""

    def save(stem: str, head: str, **changes: Any) -> Path:
        torch.manual_seed(0)
        config = getattr(transformers, f"{stem}Config")(**{**VALUES[stem], **changes})
        model = getattr(transformers, f"{stem}{head}")(config)
        with torch.no_grad():  # the usual initial values hardly let attention show in the outputs
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(8)
        model.save_pretrained(tmp_path / f"{stem}{head}")
        return tmp_path / f"{stem}{head}"

    return save


@every_case(("stem", "head"), [(stem, head) for stem, heads in HEADS.items() for head in heads], of=3)
def test_every_head_is_adopted_with_equal_outputs(stem: str, head: str, saved: Saved, tmp_path: Path) -> None:
    report = convert_checkpoint(saved(stem, head), tmp_path / "long")
    assert not report.needs_training
    assert report.plan["long_class"] == f"Long{BASES.get(stem, stem)}{head}"
    assert report.plan["original_architecture"] == getattr(transformers, f"{stem}Config").model_type
    equal = [check for check in report.checks if check.name.startswith("equal to the source")]
    assert len(equal) == (2 if stem in BASES else 1), "with a mask of global tokens, where the source takes one"
    for check in equal:
        assert (check.status, check.values["length"]) == ("passed", LENGTH)
        assert check.values["max_abs_difference"] <= 1e-4
        assert any("hidden_states[2]" in output for output in check.values["outputs"])
    if f"{stem}{head}" in ATTENTION:
        config = read_json(tmp_path / "long")
        assert config["long_attention"] == ATTENTION[f"{stem}{head}"]


PROJECTIONS = ("query", "key", "value")
NAMES: dict[str, dict[str, str]] = {
    "Longformer": {
        "longformer.": "roberta.",
        **{f"self.{name}_global.": f"self.long_attention.separate.{name}." for name in PROJECTIONS},
    },
    "LED": {
        "led.": "model.",
        ".self_attn.output.": ".self_attn.out_proj.",
        **{f"longformer_self_attn.{name}_global.": f"long_attention.separate.{name}." for name in PROJECTIONS},
        **{f"longformer_self_attn.{name}.": f"{name[0]}_proj." for name in PROJECTIONS},
    },
}


@every_case("stem", ["Longformer", "LED", "BigBird", "BigBirdPegasus"], of=2)
def test_adopted_tensors_are_the_sources(stem: str, saved: Saved, tmp_path: Path) -> None:
    source = saved(stem, HEADS[stem][1])
    convert_checkpoint(source, tmp_path / "long", verify=False)
    old, new = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "long"))
    assert len(old) == len(new)
    for name, tensor in old.items():
        target = name
        for before, after in NAMES.get(stem, {}).items():
            target = target.replace(before, after)
        stored = new[target]
        if stem == "LED" and "embed_positions" in name:  # BART's table has two more rows
            assert len(stored) == len(tensor) + 2
            stored = stored[2:]
        assert torch.equal(stored, tensor), name


def test_adopted_models_can_be_extended(saved: Saved, tmp_path: Path) -> None:
    source = saved("Longformer", "ForMaskedLM")
    convert_checkpoint(source, tmp_path / "long", max_length=3 * LENGTH)
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "long")
    assert model.config.max_position_embeddings == 3 * LENGTH + 2


def test_both_stacks_of_an_adopted_led_can_be_extended(saved: Saved, tmp_path: Path) -> None:
    report = convert_checkpoint(
        saved("LED", "ForConditionalGeneration"), tmp_path / "long", max_length=400, max_decoder_length=100
    )
    assert (report.plan["old_length"], report.plan["new_length"]) == (LENGTH, 400)
    assert (report.plan["decoder"]["old_length"], report.plan["decoder"]["new_length"]) == (64, 100)


@pytest.mark.thorough
def test_adopted_big_bird_keeps_unusual_settings_and_is_extended(saved: Saved, tmp_path: Path) -> None:
    source = saved("BigBird", "ForMaskedLM", rescale_embeddings=True, use_bias=False, hidden_act="relu")
    convert_checkpoint(source, tmp_path / "long", max_length=2 * LENGTH)
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "long", dtype=torch.float32)
    assert model.config.rescale_embeddings
    assert model(torch.randint(5, 200, (1, 2 * LENGTH))).logits.isfinite().all()


CHANGED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "an option": ("Longformer", {"window": 12}, {**WINDOW, "window": 12}),
    "a mechanism": ("Longformer", {"mechanism": "window", "window": 8}, {"mechanism": "window", "window": 8}),
    "a mechanism for BigBird": (
        "BigBird",
        {"mechanism": "window", "window": 32},
        {"mechanism": "window", "window": 32},
    ),
}


@every_case("case", CHANGED)
def test_another_attention_for_an_adopted_model_needs_training(case: str, saved: Saved, tmp_path: Path) -> None:
    stem, settings, expected = CHANGED[case]
    report = convert_checkpoint(saved(stem, "ForMaskedLM"), tmp_path / "long", **settings)
    assert report.needs_training
    attention = report.plan["long_attention"]
    assert {name: attention[name] for name in expected} == expected
    assert "layers" not in attention


def test_big_bird_with_blocks_of_each_text_ignores_padding(saved: Saved, tmp_path: Path) -> None:
    report = convert_checkpoint(saved("BigBird", "Model"), tmp_path / "long", blocks_over="text")
    assert report.plan["long_attention"] == {**BLOCK, "blocks_over": "text"}
    assert statuses(report)["padding changes nothing"] == "passed"


def test_big_bird_refuses_two_questions_in_a_row(saved: Saved) -> None:
    """The head takes its logits out of the answers, so that a second one in the row would keep them."""
    model = hf_longattn.LongBigBirdForQuestionAnswering.from_pretrained(saved("BigBird", "ForQuestionAnswering"))
    with pytest.raises(
        InputError, match="cannot tell its attention where each starts; give each document its own row"
    ):
        model(torch.arange(5, 25)[None], documents=torch.tensor([[1] * 10 + [2] * 10]))


def test_big_bird_decoder_is_adopted_if_full_and_refused_if_block_sparse(saved: Saved, tmp_path: Path) -> None:
    source = saved("BigBird", "ForCausalLM", is_decoder=True, attention_type="original_full")
    report = convert_checkpoint(source, tmp_path / "long")
    assert not report.needs_training
    assert report.plan["long_attention"] == {"mechanism": "full"}
    with pytest.raises(CheckpointError, match="sees future tokens in long texts"):
        plan_conversion(change_json(source, attention_type="block_sparse"))


def test_bigbird_pegasus_loads_as_a_long_model_without_a_conversion(saved: Saved, tmp_path: Path) -> None:
    source = saved("BigBirdPegasus", "ForConditionalGeneration")
    convert_checkpoint(source, tmp_path / "long", verify=False)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "long")
    assert (config.attention_type, config.attention_dropout, config.sparse_attention_dropout) == (
        "original_full",
        0.1,
        0.0,
    )
    assert config.max_position_embeddings == LENGTH
    loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(source, config=type(config).from_pretrained(source))
    assert loaded.config.long_attention == config.long_attention
    written = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "long").state_dict()
    assert all(torch.equal(tensor, written[name]) for name, tensor in loaded.state_dict().items())


def test_verification_finds_swapped_global_projections(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values swapped: the tensors all fit, only the outputs tell."""
    adoption = ADOPTIONS["longformer"]
    (swapped,) = (name for name in adoption.names if "_global" in name)
    separate = {"query": "query", "key": "value", "value": "key"}
    target = ".attention.self.long_attention.separate."
    names = {**adoption.names, swapped: lambda match: f"{target}{separate[match[1]]}."}
    monkeypatch.setattr(type(adoption), "names", names)
    with pytest.raises(CheckpointError, match=r"Verification failed.*with padding and global tokens.*must be equal"):
        convert_checkpoint(saved("Longformer", "ForMaskedLM"), tmp_path / "long")
    assert not (tmp_path / "long").exists()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"architectures": ["LongformerForPuzzles"]},
            "which is not supported; the supported longformer classes are .*LongformerModel",
        ),
        ({"model_type": "longfromer"}, "not supported.*longformer"),
    ],
)
def test_adoption_refuses_a_wrong_config_in_one_sentence(config: dict[str, Any], sentence: str, saved: Saved) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        plan_conversion(change_json(saved("Longformer", "Model"), **config))
