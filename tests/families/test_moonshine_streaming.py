"""Moonshine for live speech: the windows of its encoder's layers, with a mask or without, and no mask of frames × frames."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    MoonshineStreamingConfig,
    MoonshineStreamingEncoderConfig,
    MoonshineStreamingForConditionalGeneration,
    MoonshineStreamingModel,
)

from hf_longattn.conversion import convert_checkpoint, revert_checkpoint
from hf_longattn.errors import AudioError, LengthError
from hf_longattn.families import LongMoonshineStreamingConfig, LongMoonshineStreamingForConditionalGeneration, LongMoonshineStreamingModel
from hf_longattn.modeling.attach.attention_sites import attention_sites
from tests.modeling.audio_models import tensors
from tests.modeling.test_audio_models import Largest

LONG = {
    MoonshineStreamingModel: LongMoonshineStreamingModel,
    MoonshineStreamingForConditionalGeneration: LongMoonshineStreamingForConditionalGeneration,
}
HEADS = list(LONG)
SECOND = 16_000
ENCODER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "sliding_windows": ((5, 3), (4, 0), (6, 2)),
}  # fmt: skip
DECODER = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 1000, "decoder_start_token_id": 1,
}  # fmt: skip


def save(folder: Path, head: type[Any] = MoonshineStreamingModel) -> Any:
    torch.manual_seed(0)
    model = head(MoonshineStreamingConfig(encoder_config=MoonshineStreamingEncoderConfig(**ENCODER), **DECODER)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


def inputs_of(*seconds: float) -> dict[str, Tensor]:
    """Sounds of these durations with padding, their mask, and tokens for the decoder."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([round(duration * SECOND) for duration in seconds])
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    sound = torch.randn(mask.shape, generator=generator) * mask
    return {"input_values": sound, "attention_mask": mask, "decoder_input_ids": torch.tensor([[3, 5, 6]] * len(seconds))}


@pytest.mark.thorough
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
@torch.no_grad()
def test_the_windows_are_those_of_the_base_with_a_mask(head: type[Any], tmp_path: Path) -> None:
    plain, model = save(tmp_path, head), LONG[head].from_pretrained(tmp_path).eval()
    assert [site.mechanism.options.to_dict() for site in attention_sites(model.get_encoder())][1:] != []
    inputs = inputs_of(1, 0.6)
    for settings in ({}, {"output_hidden_states": True}, {"return_dict": False}):
        outputs = plain(**inputs, **settings), model(**inputs, **settings)
        if settings:
            outputs = tuple(list(output.values()) if isinstance(output, dict) else list(output) for output in outputs)
            assert len(outputs[0]) == len(outputs[1])
        else:
            for of_long, of_base in zip(tensors(outputs[1]), tensors(outputs[0]), strict=True):
                torch.testing.assert_close(of_long, of_base, rtol=1e-5, atol=1e-5)
    encoded = [each.get_encoder()(inputs["input_values"], attention_mask=inputs["attention_mask"]) for each in (plain, model)]
    assert encoded[0].attention_mask.equal(encoded[1].attention_mask)


def test_gradients_are_those_of_the_base(tmp_path: Path) -> None:
    plain, model = save(tmp_path).double(), LongMoonshineStreamingModel.from_pretrained(tmp_path).double().eval()
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs_of(1, 0.6).items()}
    states = [each(**inputs).last_hidden_state for each in (plain, model)]
    torch.testing.assert_close(states[1], states[0], rtol=1e-9, atol=1e-9)
    for each in states:
        each.square().mean().backward()
    of_base = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, of_base[name].grad, rtol=1e-7, atol=1e-10)


@torch.no_grad()
def test_without_a_mask_the_base_drops_its_windows_and_the_long_model_keeps_them(tmp_path: Path) -> None:
    plain, model = save(tmp_path), LongMoonshineStreamingModel.from_pretrained(tmp_path).eval()
    inputs = inputs_of(1)
    masked, mask = plain(**inputs).last_hidden_state, inputs.pop("attention_mask")
    assert bool(mask.all())
    for implementation in ("longattn", "eager", "sdpa"):
        model.set_attn_implementation(implementation)
        assert model.config.encoder_config._attn_implementation == implementation
        torch.testing.assert_close(model(**inputs).last_hidden_state, masked, rtol=1e-5, atol=1e-5)
    assert (plain(**inputs).last_hidden_state - masked).abs().max() > 1e-2
    model.use_base_attention()
    torch.testing.assert_close(model(**inputs, attention_mask=mask).last_hidden_state, masked, rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("masked", [False, True])
def test_nothing_of_frames_times_frames(masked: bool) -> None:
    config = LongMoonshineStreamingConfig(encoder_config=ENCODER, **{**DECODER, "max_position_embeddings": 2001})
    model = LongMoonshineStreamingModel(config)
    largest = []
    for seconds in (20, 40):
        inputs = inputs_of(seconds, seconds / 2) if masked else {**inputs_of(seconds), "attention_mask": None}
        with Largest() as mode:
            model(**inputs).last_hidden_state.sum().backward()
        largest.append(mode.elements)
    assert largest[1] < 2.1 * largest[0]


@pytest.mark.thorough
@torch.no_grad()
def test_what_is_generated_and_saved(tmp_path: Path) -> None:
    plain = save(tmp_path / "short", MoonshineStreamingForConditionalGeneration)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = LongMoonshineStreamingForConditionalGeneration.from_pretrained(tmp_path / "short").eval()
    inputs = {name: value for name, value in inputs_of(1, 0.6).items() if name != "decoder_input_ids"}
    settings = {"max_new_tokens": 6, "do_sample": False}
    assert model.generate(**inputs, **settings).equal(plain.generate(**inputs, **settings))
    model.save_pretrained(tmp_path / "long")
    loaded = LongMoonshineStreamingForConditionalGeneration.from_pretrained(tmp_path / "long").eval()
    assert loaded.config.long_attention.to_dict() == model.config.long_attention.to_dict()
    assert loaded.generate(**inputs, **settings).equal(plain.generate(**inputs, **settings))


def test_other_mechanisms_take_the_place_of_the_windows(tmp_path: Path) -> None:
    save(tmp_path)
    model = LongMoonshineStreamingModel.from_pretrained(
        tmp_path, long_attention={"mechanism": "chunked", "chunk_size": 4, "left_chunks": 3}
    )
    mechanisms = {(site.in_decoder, site.cross): site.mechanism.name for site in attention_sites(model)}
    assert mechanisms == {(False, False): "chunked", (True, False): "full", (True, True): "full"}
    assert model(**inputs_of(1, 0.6)).last_hidden_state.isfinite().all()


@pytest.mark.thorough
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_a_conversion_keeps_the_windows_and_comes_back(head: type[Any], tmp_path: Path) -> None:
    save(tmp_path / "short", head)
    report = convert_checkpoint(tmp_path / "short", tmp_path / "long")
    checks = {check.name: check.status for check in report.checks}
    assert report.passed
    assert not report.needs_training
    assert checks["equal where the mechanism covers the input"] == "passed"
    assert report.plan["long_attention"]["layers"] == {"1": {"left": 3, "right": 0}, "2": {"left": 5, "right": 1}}
    revert_checkpoint(tmp_path / "long", tmp_path / "back")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "back" / file).read_bytes() == (tmp_path / "short" / file).read_bytes()


class TestRefusals:
    def test_samples_that_are_no_whole_rows(self, tmp_path: Path) -> None:
        save(tmp_path)
        model = LongMoonshineStreamingModel.from_pretrained(tmp_path)
        with pytest.raises(AudioError, match="16001 samples, which is not a multiple of the 80 that make a row; pad it with zeros"):
            model(torch.randn(1, SECOND + 1), decoder_input_ids=torch.tensor([[3]]))

    def test_a_sound_longer_than_the_positions(self, tmp_path: Path) -> None:
        save(tmp_path / "short")
        model = LongMoonshineStreamingModel.from_pretrained(tmp_path / "short")
        with pytest.raises(AudioError, match=r"takes 21\.0 seconds, but the model has positions for 20\.0, which are not extended; cut "):
            model(torch.randn(1, 21 * SECOND), decoder_input_ids=torch.tensor([[3]]))
        with pytest.raises(LengthError, match=r"are not extended, so --audio-seconds 60 is too long; give at most --audio-seconds 20\."):
            convert_checkpoint(tmp_path / "short", tmp_path / "long", audio_seconds=60)
        assert not (tmp_path / "long").exists()

    def test_the_windows_of_a_config(self) -> None:
        config = LongMoonshineStreamingConfig(encoder_config=ENCODER, **DECODER)
        layers = [config.long_attention.for_layer(layer)[1] for layer in range(3)]
        assert layers == [{"left": 4, "right": 2}, {"left": 3, "right": 0}, {"left": 5, "right": 1}]
