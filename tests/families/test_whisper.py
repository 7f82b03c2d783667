"""Whisper's encoder with mechanisms, on spectrograms of any length; its decoder stays the base's."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoFeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
    WhisperModel,
    pipeline,
)

from hf_longattn import explain
from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.errors import InputError, OptionError
from hf_longattn.families import LongWhisperConfig
from hf_longattn.modeling.attach.attention_sites import attention_sites
from tests.modeling.audio_models import defined, long_model, seeing, tensors
from tests.reports import statuses, tensor_counts
from tests.whisper import SIZES

HEADS: tuple[type[Any], ...] = (WhisperModel, WhisperForConditionalGeneration, WhisperForAudioClassification)
BAND = {"mechanism": "window", "left": 9, "right": 4}
ROWS = 2 * SIZES["max_source_positions"]


def save(folder: Path, head: type[Any] = WhisperForConditionalGeneration, **config: Any) -> Any:
    torch.manual_seed(0)
    model = head(WhisperConfig(**{**SIZES, **config})).eval()
    model.save_pretrained(folder)
    return model


def of(head: type[Any], folder: Path, **config: Any) -> Any:
    return long_model("whisper", head.__name__, folder, **config)


def inputs_of(head: type[Any], rows: int = ROWS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = {"input_features": torch.randn(2, 16, rows, generator=generator)}
    decodes = head is not WhisperForAudioClassification
    return {**inputs, **({"decoder_input_ids": torch.tensor([[3, 5, 6], [3, 7, 8]])} if decodes else {})}


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
@torch.no_grad()
def test_whisper_with_full_attention_equals_the_base_in_all_outputs(head: type[Any], tmp_path: Path) -> None:
    for values in ({}, {"use_weighted_layer_sum": True}):
        plain, model = save(tmp_path, head, **values), of(head, tmp_path, long_attention={"mechanism": "full"})
        for settings in ({}, {"output_hidden_states": True}):
            torch.testing.assert_close(
                *(tensors(each(**inputs_of(head), **settings)) for each in (model, plain)), rtol=1e-5, atol=1e-5
            )


def test_whisper_with_a_window_is_the_base_under_its_mask_with_gradients(tmp_path: Path) -> None:
    """Outputs and gradients of the encoder and the decoder, in float64."""
    plain, model = (
        each.double() for each in (save(tmp_path), of(WhisperForConditionalGeneration, tmp_path, long_attention=BAND))
    )
    inputs = {
        name: value.double() if value.is_floating_point() else value for name, value in inputs_of(type(plain)).items()
    }
    with seeing(plain.model.encoder, *defined(model.model.encoder, 50)):
        expected = plain(**inputs).logits
        expected.square().mean().backward()
    logits = model(**inputs).logits
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    logits.square().mean().backward()
    of_base = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, of_base[name].grad, rtol=1e-7, atol=1e-9)


@torch.no_grad()
def test_longer_spectrograms_are_read_as_by_a_whisper_made_for_them(tmp_path: Path) -> None:
    """A WhisperModel of more positions has sinusoids from its first to its last."""
    plain = save(tmp_path, WhisperModel)
    model = of(WhisperModel, tmp_path, long_attention={"mechanism": "full"})
    longer = WhisperModel(WhisperConfig(**{**SIZES, "max_source_positions": 116})).eval()
    tables = {"encoder.embed_positions.weight": longer.encoder.embed_positions.weight}
    longer.load_state_dict({**plain.state_dict(), **tables})
    torch.testing.assert_close(
        *(tensors(each(**inputs_of(WhisperModel, 232))) for each in (model, longer)), rtol=1e-5, atol=1e-5
    )
    states = model(**inputs_of(WhisperModel, 61)).encoder_last_hidden_state
    assert states.shape == (2, 31, 32)


def rows_of(input_features: Tensor, **kwargs: Any) -> int:
    return input_features.shape[-1]


@torch.no_grad()
def test_whisper_generates_as_the_base_and_reads_longer_sounds_at_once(tmp_path: Path) -> None:
    plain = save(tmp_path)
    model = of(type(plain), tmp_path, long_attention={"mechanism": "full"})
    features = inputs_of(type(plain))["input_features"]
    settings = {"max_new_tokens": 6, "do_sample": False}
    # without a start token, as `prompt_ids` are
    for prompt in ({}, {"decoder_input_ids": torch.tensor([[7, 5], [7, 8]])}):
        assert model.generate(features, **prompt, **settings).equal(plain.generate(features, **prompt, **settings))
    longer = of(type(plain), tmp_path, long_attention=BAND, long_audio_seconds=2)
    read: list[int] = []
    longer.model.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(rows_of(*args, **kwargs)), with_kwargs=True
    )
    longer.generate(torch.randn(2, 16, 200), **settings)
    assert set(read) == {200}
    assert longer.config.max_source_positions == 50


@torch.no_grad()
def test_the_decoder_and_cross_attention_of_whisper_are_full(tmp_path: Path) -> None:
    save(tmp_path)
    model = of(WhisperForConditionalGeneration, tmp_path, long_attention=BAND)
    names = {(site.decoding, site.cross): site.mechanism.name for site in attention_sites(model)}
    assert names == {(False, False): "window", (True, False): "full", (True, True): "full"}
    assert "window" in str(explain(model, inputs_of(WhisperForConditionalGeneration)))


@pytest.mark.thorough
@torch.no_grad()
def test_whisper_compiles_to_one_graph(tmp_path: Path) -> None:
    save(tmp_path, WhisperForAudioClassification, encoder_layers=1)
    model = of(WhisperForAudioClassification, tmp_path, long_attention=BAND)
    inputs = inputs_of(WhisperForAudioClassification, 160)
    expected = model(**inputs).logits
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs).logits, expected, rtol=1e-4, atol=1e-5)
    exported = torch.export.export(model, (), kwargs=inputs).module()
    torch.testing.assert_close(exported(**inputs).logits, expected, rtol=1e-4, atol=1e-5)


def test_whisper_counts_a_part_of_a_second_as_one(tmp_path: Path) -> None:
    """The feature extractor counts whole seconds, and the rows that it makes are those that are generated from at
    once."""
    save(tmp_path / "short", max_source_positions=150)
    WhisperFeatureExtractor(feature_size=16, chunk_length=3).save_pretrained(tmp_path / "short")
    report = convert_checkpoint(tmp_path / "short", tmp_path / "long", audio_seconds=4.5, needs_training=True)
    assert report.plan["new_audio_seconds"] == 5
    model = of(WhisperForConditionalGeneration, tmp_path / "long")
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "long")
    assert (extractor.chunk_length, extractor.n_samples, extractor.nb_max_frames) == (5, 80_000, 500)
    features = extractor([0.1] * 70_000, sampling_rate=16_000, return_tensors="pt")["input_features"]
    read: list[int] = []
    model.model.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(rows_of(*args, **kwargs)), with_kwargs=True
    )
    model.generate(features, max_new_tokens=3, do_sample=False)
    assert set(read) == {features.shape[-1]} == {500}


class TestWhisperRefuses:
    @pytest.mark.parametrize("shape", [(16, 100), (1, 100, 16), (1, 15, 100)])
    def test_an_input_that_is_no_spectrogram_of_this_model(self, shape: tuple[int, ...], tmp_path: Path) -> None:
        save(tmp_path, WhisperForAudioClassification)
        model = of(WhisperForAudioClassification, tmp_path)
        with pytest.raises(
            InputError,
            match=r"input_features has shape .*, but must be \(batch, 16 mel bins, rows\) as the model's feature",
        ):
            model(torch.randn(shape))

    def test_mechanisms_of_texts_and_images(self) -> None:
        for mechanism in ("window2d", "recurrent_memory"):
            with pytest.raises(OptionError, match="choose for example 'window'"):
                LongWhisperConfig(**SIZES, long_attention={"mechanism": mechanism})


class TestConversionOfWhisper:
    """To a longer duration, with the feature extractor, and back."""

    @pytest.mark.thorough
    @pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
    def test_the_feature_extractor_reads_the_new_duration(self, head: type[Any], tmp_path: Path) -> None:
        save(tmp_path / "short", head)
        WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(tmp_path / "short")
        report = convert_checkpoint(
            tmp_path / "short", tmp_path / "long", audio_seconds=2, mechanism="full", needs_training=True
        )
        checks = statuses(report)
        assert report.verified
        assert checks["equal where the mechanism covers the input"] == checks["finite at the new size"] == "passed"
        assert tensor_counts(report)["kept"] == sum(tensor_counts(report).values())
        extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "long")
        assert (extractor.chunk_length, extractor.n_samples, extractor.nb_max_frames) == (2, 32_000, 200)
        features = extractor(torch.randn(20_000).numpy(), sampling_rate=16_000, return_tensors="pt")["input_features"]
        assert features.shape == (1, 16, 200)
        model = of(head, tmp_path / "long")
        assert tensors(model(**{**inputs_of(head), "input_features": features.expand(2, -1, -1)}))[0].isfinite().all()

    def test_a_plan_says_that_transcription_needs_training(self, tmp_path: Path) -> None:
        """It is refused unless the user is going to train it; a report never says that transcripts are usable."""
        for head in HEADS:
            writes = head is WhisperForConditionalGeneration
            save(tmp_path / "short", head)
            assert not plan_conversion(tmp_path / "short").warnings
            warnings = plan_conversion(tmp_path / "short", audio_seconds=2, needs_training=True).warnings
            assert len(warnings) == writes
            for warning in warnings:
                assert str(warning).startswith(
                    "the decoder was trained to write what is said in 1 seconds, in 40 tokens at most"
                )
                assert "so transcripts are of no use; train the result by longattn train seq2seq" in str(warning)
            advice = r"leave --audio-seconds out, .* chunk_length_s=1\), or convert it with --needs-training"
            with pytest.raises(InputError, match=advice) if writes else contextlib.nullcontext():
                assert not plan_conversion(tmp_path / "short", audio_seconds=2).warnings

    def test_a_pipeline_classifies_sounds_of_the_new_duration(self, tmp_path: Path) -> None:
        save(tmp_path / "short", WhisperForAudioClassification)
        WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(tmp_path / "short")
        convert_checkpoint(tmp_path / "short", tmp_path / "long", audio_seconds=2, verify=False)
        classify = pipeline("audio-classification", model=str(tmp_path / "long"))
        assert classify(torch.randn(30_000).numpy(), top_k=1)[0]["label"] in ("LABEL_0", "LABEL_1")
