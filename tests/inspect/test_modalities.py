"""Captured mass of images and sounds against the whole softmax, the tower that reads a text, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoFeatureExtractor, ViTForImageClassification

from hf_longattn.data.audio import read_audio
from hf_longattn.engines.token_grid import Grid
from hf_longattn.errors import BackendError
from hf_longattn.inspect import captured_mass, diagnose
from hf_longattn.inspect.watching import tower_of_texts
from hf_longattn.mechanisms.common.registry import mechanism_from
from scripts.dev.tools.small_models import small_image_config
from tests.cases import every_case
from tests.cli.test_commands import run
from tests.modeling.audio_models import (
    EVERY_FAMILY,
    RATE,
    inputs_of,
    long_model,
    recording,
    small_model,
    smallest_head,
    with_extractor,
)
from tests.modeling.test_generic import build_towers
from tests.towers import LINES, SHAPE, save_clip


@pytest.fixture(scope="module")
def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    return ViTForImageClassification(small_image_config("vit", initializer_range=0.3)).eval()


def test_masses_of_images_are_those_of_the_whole_softmax(vit: ViTForImageClassification) -> None:
    image = {"pixel_values": torch.randn(1, 3, 40, 48)}
    measured = captured_mass(vit, image, ["window2d:window=3", "window2d:window=5", "full"]).mass
    grid = Grid((10, 12), prefix=1)
    tokens = torch.arange(121)
    vit.set_attn_implementation("eager")
    with torch.no_grad():
        weights = vit(**image, interpolate_pos_encoding=True, output_attentions=True).attentions
    for number, width in enumerate((3, 5)):
        mechanism = mechanism_from("window2d", {"window": width}, num_heads=4, head_dim=8).on_grid(grid)
        kept = mechanism.mask_mod(False, None)(0, 0, tokens[:, None], tokens)
        expected = torch.stack([(layer[0] * kept).sum(-1).mean(-1) for layer in weights])
        torch.testing.assert_close(measured[..., number].float(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(measured[..., 2], torch.ones(2, 4).double(), rtol=0, atol=1e-5)


def test_masses_of_sounds_are_those_of_transformers_weights(tmp_path: Path) -> None:
    talk = recording(tmp_path / "talk.wav", 1.5)
    base = with_extractor("wav2vec2", "Wav2Vec2Model", tmp_path)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    values = extractor(read_audio(talk, RATE), sampling_rate=RATE, return_tensors="pt").input_values
    model = long_model("wav2vec2", "Wav2Vec2Model", tmp_path, long_attention={"mechanism": "full"})
    measured = captured_mass(model, {"input_values": values}, ["window:left=9,right=4"]).mass[..., 0]
    base.set_attn_implementation("eager")
    with torch.no_grad():
        weights = torch.cat(base(values, output_attentions=True).attentions)
    distance = torch.arange(weights.shape[-1])[:, None] - torch.arange(weights.shape[-1])
    kept = (weights.double() * ((distance <= 9) & (distance >= -4))).sum(-1).mean(-1)
    torch.testing.assert_close(measured, kept, rtol=0, atol=1e-5)


@every_case("base", EVERY_FAMILY, of=4)
def test_full_attention_keeps_all_mass_of_every_family_of_sound(base: str, tmp_path: Path) -> None:
    """A window keeps less, unless the base itself sees no more."""
    small_model(base, smallest_head(base)).save_pretrained(tmp_path)
    model = long_model(base, smallest_head(base), tmp_path, long_attention={"mechanism": "full"})
    inputs = inputs_of(base, (0.7,))
    inputs.pop("decoder_input_ids", None)  # the encoder is watched
    mass = captured_mass(model, inputs, ["window:left=3,right=3", "full"], queries=64).mass
    torch.testing.assert_close(mass[..., 1], torch.ones_like(mass[..., 1]), rtol=0, atol=1e-5)
    assert bool((mass[..., 0] > 0).all())
    assert bool((mass[..., 0] <= mass[..., 1] + 1e-5).all())


def test_a_stock_model_of_sound_is_refused_with_the_class_to_load() -> None:
    model = small_model("wav2vec2", "Wav2Vec2Model")
    with pytest.raises(BackendError, match=r"can only be watched in LongWav2Vec2Model; load that class"):
        captured_mass(model, inputs_of("wav2vec2"), ["full"])


@pytest.mark.parametrize("base", ["vit", "wav2vec2"])
def test_the_inspect_command_refuses_to_measure_images_and_sounds(
    base: str, vit: ViTForImageClassification, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = vit if base == "vit" else small_model("wav2vec2", "Wav2Vec2Model")
    model.save_pretrained(tmp_path)
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\xff")
    code, _, error = run(capsys, "inspect", tmp_path, tmp_path / "photo.png")
    nouns = "images" if base == "vit" else "sounds"
    assert code == 1
    assert f"reads {nouns}, but attention is measured on texts alone; `longattn search`" in error


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


def test_a_text_is_read_by_the_tower_of_texts(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join(LINES))
    found = diagnose(clip, tmp_path / "text.txt", candidates=["window:window=16"], queries=8)
    assert (found.model_class, found.causal, found.last.length) == ("CLIPModel, tower text", True, SHAPE.tokens)
    assert found.flags(0) == ["--towers", "text=window:window=16"]


@pytest.mark.parametrize("case", ["llava", "pixtral", "qwen2_vl"])
def test_texts_are_read_by_the_text_tower_of_language_models(case: str) -> None:
    model, _ = build_towers(case)
    tower, name = tower_of_texts(model)
    assert (name, tower.main_input_name) == ("text", "input_ids")
    assert tower_of_texts(torch.nn.Linear(1, 1))[1] == ""
