"""Checkpoints with an encoder and a decoder: each has its own length and attention."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.errors import CheckpointError, InputError, OptionError
from hf_longattn.inspect import inspect_checkpoint
from tests.reports import tensor_counts

from .conftest import LENGTH

Built = Callable[[str], Path]
BART, PEGASUS = "BartForConditionalGeneration", "PegasusForConditionalGeneration"
WINDOW = {"mechanism": "window", "window": 16}
SIDES = ("encoder", "decoder")


def tables(folder: Path) -> dict[str, torch.Tensor]:
    found = load_file(folder / "model.safetensors")
    return {side: found[f"model.{side}.embed_positions.weight"] for side in SIDES}


@pytest.mark.thorough
def test_conversion_extends_the_encoder_and_keeps_the_decoder(built: Built, tmp_path: Path) -> None:
    report = convert_checkpoint(built(BART), tmp_path / "long", **WINDOW, max_length=200)
    old, new = tables(built(BART)), tables(tmp_path / "long")
    assert torch.equal(new["decoder"], old["decoder"])
    assert torch.equal(new["encoder"], torch.cat([old["encoder"][:2], *[old["encoder"][2:]] * 4])[:202])
    config = json.loads((tmp_path / "long" / "config.json").read_text())
    assert (config["max_position_embeddings"], config["max_decoder_position_embeddings"]) == (200, LENGTH)
    assert report.plan["decoder"] == {"long_attention": {"mechanism": "full"}, "old_length": LENGTH, "new_length": LENGTH}
    assert report.plan["costs"][-1]["cache_bytes"] == 2 * 200 * 2 * 32 * 4  # the decoder keeps keys and values of the whole text
    assert "longattn train seq2seq" in report.train_command
    found = inspect_checkpoint(tmp_path / "long")
    assert (found.max_length, found.causal, len(found.mechanisms)) == (200, False, 2)


@pytest.mark.thorough
def test_conversion_extends_a_decoder_with_its_own_attention(built: Built, tmp_path: Path) -> None:
    own = {"mechanism": "window", "window": 12}
    report = convert_checkpoint(
        built(BART), tmp_path / "long", mechanism="full", max_length=200, max_decoder_length=150, decoder_long_attention=own
    )
    assert report.verified
    assert report.plan["decoder"] == {"long_attention": own, "old_length": LENGTH, "new_length": 150}
    assert [len(table) for table in tables(tmp_path / "long").values()] == [202, 152]
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "long")
    assert [layer.self_attn.long_attention.name for layer in model.model.decoder.layers] == ["window"] * 2
    ids = torch.arange(5, 25)[None]
    assert model.generate(ids, max_new_tokens=100, min_new_tokens=100).shape == (1, 101)


@pytest.mark.thorough
def test_decoder_that_reads_the_text_becomes_as_long_as_the_encoder(built: Built, tmp_path: Path) -> None:
    report = convert_checkpoint(built("BartForQuestionAnswering"), tmp_path / "long", **WINDOW, max_length=200)
    assert report.plan["decoder"]["new_length"] == 200
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "long")
    with torch.no_grad():
        assert model(torch.arange(5, 205)[None]).start_logits.shape == (1, 200)


def test_decoder_alone_is_converted_and_refuses_settings_of_two_stacks(built: Built, tmp_path: Path) -> None:
    report = convert_checkpoint(built("BartForCausalLM"), tmp_path / "long", **WINDOW, max_length=200)
    assert "decoder" not in report.plan
    config = json.loads((tmp_path / "long" / "config.json").read_text())
    assert config["max_decoder_position_embeddings"] == 200
    assert not config["is_encoder_decoder"]
    assert inspect_checkpoint(tmp_path / "long").max_length == 200
    for flag in ({"max_decoder_length": 200}, {"decoder_long_attention": WINDOW}):
        with pytest.raises(OptionError, match="is for the decoder of an encoder-decoder, but a BartForCausalLM"):
            plan_conversion(built("BartForCausalLM"), **flag)


@pytest.mark.thorough
def test_pegasus_positions_are_computed_for_the_new_length(built: Built, tmp_path: Path) -> None:
    report = convert_checkpoint(built(PEGASUS), tmp_path / "long", mechanism="full", max_length=200)
    assert report.plan["positions"] == "sinusoidal"
    assert not report.needs_training
    expected = transformers.PegasusModel(
        transformers.PegasusConfig(vocab_size=9, d_model=32, encoder_layers=0, max_position_embeddings=200)
    )
    assert torch.equal(tables(tmp_path / "long")["encoder"], expected.encoder.embed_positions.weight)
    assert torch.equal(tables(tmp_path / "long")["decoder"], tables(built(PEGASUS))["decoder"])
    with pytest.raises(OptionError, match="sinusoidal positions"):
        plan_conversion(built(PEGASUS), max_length=200, positions="tile")


@pytest.mark.thorough
def test_checkpoint_without_computed_position_tables_is_converted(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """As the first ones of Pegasus were stored."""
    source = checkpoint(PEGASUS)
    kept = {name: tensor for name, tensor in load_file(source / "model.safetensors").items() if "embed_positions" not in name}
    save_file(kept, source / "model.safetensors", metadata={"format": "pt"})
    report = convert_checkpoint(source, tmp_path / "long", **WINDOW, max_length=200)
    assert report.verified
    assert tensor_counts(report)["extended"] == 0
    assert (report.plan["old_length"], report.plan["new_length"]) == (LENGTH, 200)


@pytest.mark.thorough
def test_tokenizer_and_generation_lengths_of_two_stacks_follow(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = checkpoint(BART, tokenizer="gpt2")
    (source / "generation_config.json").write_text(json.dumps({"max_length": LENGTH, "num_beams": 2}))
    report = convert_checkpoint(source, tmp_path / "long", **WINDOW, max_length=200, max_decoder_length=90)
    assert report.verified
    assert json.loads((tmp_path / "long" / "generation_config.json").read_text())["max_length"] == 90
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "long").model_max_length == 200


def test_conversion_of_two_stacks_refuses_wrong_lengths_layers_and_tables(
    built: Built, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"a maximum decoder length of 10 is too small, give at least 64"):
        plan_conversion(built(BART), max_decoder_length=10)
    with pytest.raises(InputError, match=r"a maximum length of 10 is too small"):
        plan_conversion(built(BART), max_length=10)
    with pytest.raises(OptionError, match="layer 7"):
        plan_conversion(built(BART), decoder_long_attention={**WINDOW, "layers": {7: {"window": 3}}})
    source = checkpoint(BART)
    tensors = load_file(source / "model.safetensors")
    tensors["model.decoder.embed_positions.weight"] = torch.zeros(40, 32)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"decoder\.embed_positions\.weight' of .* has the shape"):
        convert_checkpoint(source, tmp_path / "long")
