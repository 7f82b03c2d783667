"""What is computed in chunks of a long sound is what one pass computes: features, their norm over the sound,
feed-forward layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hf_longattn
from hf_longattn.families import FAMILIES
from hf_longattn.modeling.attach import sound_chunks
from hf_longattn.modeling.attach.sound_chunks import FeatureEncoderInChunks, FramesInChunks, InChunks
from tests.cases import every_case
from tests.largest_tensor import LargestTensor
from tests.modeling.audio_models import BASES, base_model, inputs_of, long_model, saved

SIZE = 8
"""Frames of a chunk in these tests."""
NORMS = ("group", "layer")


def norms_of(base: str) -> tuple[str, ...]:
    """The norms that its feature encoder may have."""
    return NORMS if hasattr(FAMILIES[base].config_class(), "feat_extract_norm") else ("layer",)


OF_SAMPLES = [
    base
    for base in BASES
    if hasattr(FAMILIES[base].config_class(), "conv_kernel") and FAMILIES[base].spec.features is None
]
ENCODERS = [(base, norm) for base in OF_SAMPLES for norm in norms_of(base)]


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks so short that a small model's sounds are several."""
    monkeypatch.setattr(sound_chunks, "FRAMES_PER_CHUNK", SIZE)
    monkeypatch.setattr(sound_chunks, "WINDOWS_OF_MOMENTS", 700)
    monkeypatch.setattr(sound_chunks, "FRAMES_PER_PRODUCT", SIZE)


def encoders(base: str, norm: str, folder: Path) -> tuple[Any, Any]:
    """The feature encoders of a small base, and of its Long model."""
    plain = saved(base, base_model(base), folder, feat_extract_norm=norm)
    return plain.feature_extractor, long_model(base, base_model(base), folder).feature_extractor


@pytest.mark.thorough
@torch.no_grad()
@every_case(("base", "norm"), ENCODERS, of=3)
def test_features_in_chunks_are_those_of_one_pass(base: str, norm: str, short_chunks: None, tmp_path: Path) -> None:
    """Around the ends of chunks, in float64, with an offset that a careless variance would lose."""
    plain, encoder = (each.double() for each in encoders(base, norm, tmp_path))
    assert isinstance(encoder, FeatureEncoderInChunks)
    spec: Any = FAMILIES[base].spec
    config = encoder.config
    for frames in (SIZE - 1, SIZE, SIZE + 1, 2 * SIZE, 2 * SIZE + 1, 3 * SIZE - 1):
        shortest = spec.length_of(config, frames * getattr(config, "squeeze_factor", 1))
        for samples in (shortest, shortest + 1, shortest + 319):
            sound = 3 + torch.randn(2, samples, dtype=torch.float64, generator=torch.Generator().manual_seed(samples))
            torch.testing.assert_close(encoder(sound), plain(sound), rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("norm", NORMS)
def test_features_in_chunks_are_near_under_autocast(norm: str, short_chunks: None, tmp_path: Path) -> None:
    plain, encoder = encoders("wav2vec2", norm, tmp_path)
    sound = torch.randn(1, 9_000, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = plain(sound)
        features = encoder(sound)
    assert features.dtype == expected.dtype
    torch.testing.assert_close(features, expected, rtol=5e-2, atol=5e-2)


@pytest.mark.thorough
@torch.no_grad()
@every_case("base", OF_SAMPLES, of=3)
def test_features_of_a_long_sound_take_no_more_than_chunks_and_frames(base: str, tmp_path: Path) -> None:
    """The first convolution of the whole sound would have 64 rows for each frame."""
    for norm in norms_of(base):
        _, encoder = encoders(base, norm, tmp_path / norm)
        channels = max(encoder.config.conv_dim)
        samples = 6 * sound_chunks.FRAMES_PER_CHUNK * 320
        with LargestTensor() as mode:
            features = encoder(torch.randn(1, samples))
        assert mode.elements <= max(features.numel(), samples, 66 * channels * sound_chunks.FRAMES_PER_CHUNK)


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_of_sound_in_chunks_are_those_of_the_base(norm: str, short_chunks: None, tmp_path: Path) -> None:
    """The feature encoder computes at once what it is trained on; one that is frozen does not, and what follows has
    its gradients."""
    inputs = inputs_of("wav2vec2", (0.9,))
    for frozen in (False, True):
        values = {"feat_extract_norm": norm, "mask_time_prob": 0.0, "layerdrop": 0.0}
        plain = saved("wav2vec2", "Wav2Vec2ForCTC", tmp_path, **values)
        model = long_model("wav2vec2", "Wav2Vec2ForCTC", tmp_path, long_attention={"mechanism": "full"})
        grads = []
        for either in (plain, model):
            if frozen:
                either.freeze_feature_encoder()
            for module in either.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
            either.train()(**inputs, labels=torch.tensor([[1, 2, 3]])).loss.backward()
            grads.append({name: parameter.grad for name, parameter in either.named_parameters()})
        for name, expected in grads[0].items():
            assert (expected is None) == (grads[1][name] is None) == (frozen and "feature_extractor" in name), name
            if expected is not None:
                torch.testing.assert_close(grads[1][name], expected, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.thorough
@torch.no_grad()
@every_case("base", BASES, of=3)
def test_feed_forward_layers_in_chunks_are_those_of_one_pass(base: str, short_chunks: None, tmp_path: Path) -> None:
    plain = saved(base, base_model(base), tmp_path).double()
    model = long_model(base, base_model(base), tmp_path).double()
    expected = dict(plain.named_modules())
    layers = {name: module for name, module in model.named_modules() if isinstance(module, FramesInChunks)}
    assert len(layers) >= model.config.num_hidden_layers
    for name, module in layers.items():
        states = torch.randn(2, 2 * SIZE + 3, model.config.hidden_size, dtype=torch.float64)
        torch.testing.assert_close(module(states), expected[name](states), rtol=1e-12, atol=1e-12)


@pytest.mark.thorough
@torch.no_grad()
@every_case("base", BASES)
def test_an_optimised_stock_model_of_sound_computes_in_stretches(
    base: str, short_chunks: None, tmp_path: Path
) -> None:
    """After ``optimize_for_inference(model, "fp32")`` the stock model computes chunks, with its own attention and the
    same outputs."""
    plain = saved(base, base_model(base), tmp_path).double()
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in inputs_of(base, (0.9, 0.5)).items()}
    expected = plain(**inputs)[0]
    classes = {type(module) for module in plain.modules()}
    assert hf_longattn.optimize_for_inference(plain, "fp32") is plain
    replaced = {type(module) for module in plain.modules()} - classes
    assert replaced
    assert all(issubclass(one, InChunks) for one in replaced)
    torch.testing.assert_close(plain(**inputs)[0], expected, rtol=1e-10, atol=1e-10)
    plain.save_pretrained(tmp_path / "again")
    assert type(type(plain).from_pretrained(tmp_path / "again")) is type(plain)
