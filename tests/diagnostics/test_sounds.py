"""How far models of sound look, and what they attend to, by time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ASTFeatureExtractor, AutoFeatureExtractor, BertConfig, BertModel

from hf_longattn.cli import main
from hf_longattn.data.audio import read_audio
from hf_longattn.diagnostics import diagnose_picture, diagnose_sound, measure_receptive_field
from hf_longattn.errors import BackendError, CheckpointError, GridError, LengthError, OptionError
from hf_longattn.families import FAMILIES
from tests.cells import every_cell
from tests.modeling import grid_models
from tests.modeling.audio_models import EVERY_FAMILY, RATE, long_model, recording, small_model, smallest_head, with_extractor

WINDOW = {"mechanism": "window", "left": 3, "right": 3}


@every_cell("base", EVERY_FAMILY, of=2)
def test_how_far_every_family_looks(base: str, tmp_path: Path) -> None:
    with_extractor(base, smallest_head(base), tmp_path / "short", **({"max_source_positions": 100} if base == "whisper" else {}))
    model = long_model(base, smallest_head(base), tmp_path / "short", long_attention=WINDOW)
    model.save_pretrained(tmp_path / "short")
    field = measure_receptive_field(tmp_path / "short", recording(tmp_path / "talk.wav", 2.5), samples=2, audio_seconds=2.4)
    rule: Any = FAMILIES[base].rule
    assert field.mechanisms == ("window",)
    assert field.cell_seconds == pytest.approx(rule.step(model.config) / rule.rate)
    assert field.grid.cells == pytest.approx(2.4 / field.cell_seconds, abs=2)
    assert field.full is not None
    assert field.measured.changes[0] > 0
    assert field.full.furthest >= field.measured.furthest
    if rule.stream is not None and rule.stream.encoder is None and field.grid.cells > 40:  # no convolution looks far
        assert field.full.furthest > field.measured.furthest


def test_a_window_bounds_what_is_seen(tmp_path: Path) -> None:
    """Two layers of 3 frames to either side, convolutions of one frame each, and those that tell positions, 2 back and 1 ahead."""
    model = small_model("wav2vec2", "Wav2Vec2Model", num_conv_pos_embeddings=4)
    model.save_pretrained(tmp_path)
    long = long_model("wav2vec2", "Wav2Vec2Model", tmp_path, long_attention=WINDOW)
    values = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    field = measure_receptive_field(long, values, samples=6)
    assert 3 <= field.measured.reach() <= field.measured.furthest <= 3 + 3 + 2 + 1
    assert field.full is not None
    assert field.full.furthest > 20
    assert "frames (0." in field.conclusion()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_extractor("wav2vec2", "Wav2Vec2ForCTC", tmp_path / "short")
    long_model("wav2vec2", "Wav2Vec2ForCTC", tmp_path / "short", long_attention=WINDOW).save_pretrained(tmp_path / "short")
    file = recording(tmp_path / "talk.wav", 1.5)
    recording(tmp_path / "talks.wav", 1.2)
    capsys.readouterr()
    typed = ["probe", str(tmp_path / "short"), str(file), "--samples", "2", "--save", str(tmp_path / "field.json")]
    assert _run(typed) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "frames of 20 ms in each sound" in shown
    assert "seconds away" in shown
    report = json.loads((tmp_path / "field.json").read_text())
    assert (report["recordings"], report["frame_seconds"], report["patch"]) == ([str(file)], 0.02, [320])
    assert _run([*typed[:-2], "--image-size", "64"]) == 1
    assert "reads sound; give its duration as --audio-seconds" in capsys.readouterr().err
    assert _run([*typed[:-2], "--audio-seconds", "9"]) == 1
    assert "The longest recording has 1.5 seconds, but 9 are needed" in capsys.readouterr().err


def test_what_cannot_be_probed_says_why(tmp_path: Path) -> None:
    model = small_model("wav2vec2", "Wav2Vec2Model")
    model.save_pretrained(tmp_path / "bare")
    file = recording(tmp_path / "talk.wav", 1)
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json, which says how it reads sound"):
        measure_receptive_field(tmp_path / "bare", file)
    with pytest.raises(OptionError, match="A model in memory is probed with pixels or with samples"):
        measure_receptive_field(model, file)
    with_extractor("whisper", "WhisperModel", tmp_path / "whisper", max_source_positions=100)
    with pytest.raises(LengthError, match=r"The longest recording has 1\.0 seconds, but 2 are needed"):
        measure_receptive_field(tmp_path / "whisper", file)


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recording(tmp_path_factory.mktemp("talks") / "talk.wav", 4.5)


@every_cell("base", EVERY_FAMILY, of=2)
def test_every_family_is_diagnosed_as_transformers_has_it(base: str, talk: Path, tmp_path: Path) -> None:
    """What the model attends to is kept by full attention; by a window less, unless the base itself sees no more."""
    with_extractor(base, smallest_head(base), tmp_path, **({"max_source_positions": 100} if base == "whisper" else {}))
    report = diagnose_sound(tmp_path, talk, audio_seconds=[2], candidates=["window:left=3,right=3", "full"], queries=64)
    rule: Any = FAMILIES[base].rule
    assert (report.unit, report.is_long, report.model_class) == ("frames", False, smallest_head(base))
    assert report.frame_seconds is not None
    assert report.last.length * report.frame_seconds == pytest.approx(2, abs=3 * report.frame_seconds)
    captured = report.last.captured()
    assert len(captured) == rule.layers(FAMILIES[base].base_config_class.from_pretrained(tmp_path))
    torch.testing.assert_close(captured[..., 1], torch.ones_like(captured[..., 1]), rtol=0, atol=1e-5)
    assert bool((captured[..., 0] > 0).all())
    assert bool((captured[..., 0] <= captured[..., 1] + 1e-5).all())


def test_masses_are_those_of_transformers_weights(talk: Path, tmp_path: Path) -> None:
    """By distance and by mechanism, mean over the stretches of a recording."""
    base = with_extractor("wav2vec2", "Wav2Vec2Model", tmp_path)
    report = diagnose_sound(tmp_path, talk, audio_seconds=[1.5], candidates=["window:left=9,right=4"])
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    values = extractor(read_audio(talk, RATE), sampling_rate=RATE, return_tensors="pt").input_values
    base.set_attn_implementation("eager")
    with torch.no_grad():
        passes = [base(stretch, output_attentions=True).attentions for stretch in values.split(24_000, 1)]
    weights = torch.stack([torch.cat(layers) for layers in zip(*passes, strict=True)]).double().mean(1)  # (layers, H, N, N)
    distance = torch.arange(weights.shape[-1])[:, None] - torch.arange(weights.shape[-1])
    kept = (weights * ((distance <= 9) & (distance >= -4))).sum(-1).mean(-1)
    torch.testing.assert_close(report.last.captured()[..., 0], kept, rtol=0, atol=1e-5)
    for number, (low, high) in enumerate(report.last.bins):
        mass = (weights * ((distance.abs() >= low) & (distance.abs() <= high))).sum(-1).mean(-1)
        measured = torch.stack([layer.distance[:, number] for layer in report.last.layers])
        torch.testing.assert_close(measured, mass, rtol=0, atol=1e-5)


def test_a_long_model_and_its_checkpoint_have_the_same_attention(talk: Path, tmp_path: Path) -> None:
    with_extractor("wav2vec2", "Wav2Vec2ForCTC", tmp_path)
    stock = diagnose_sound(tmp_path, talk, candidates=["window:window=32"], queries=50)
    model = long_model("wav2vec2", "Wav2Vec2ForCTC", tmp_path, long_attention={"mechanism": "full"})
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    long = diagnose_sound(model, talk, extractor=extractor, candidates=["window:window=32"], queries=50)
    assert (stock.is_long, long.is_long) == (False, True)
    torch.testing.assert_close(long.last.captured(), stock.last.captured(), rtol=0, atol=1e-6)
    assert stock.notes == ("The longest recording has 4.5 seconds; a longer one shows greater distances.",)
    best = stock.recommend()
    assert best is not None
    assert best.flags[-2:] == ("--audio-seconds", "15"), "a conversion is not to sounds shorter than those of the source"
    assert "--audio-seconds 15 --compare-at 4 " in stock.search_command("talk.wav")


def test_longer_sounds_than_the_checkpoint_reads(tmp_path: Path) -> None:
    with_extractor("whisper", "WhisperModel", tmp_path, max_source_positions=100)
    report = diagnose_sound(tmp_path, recording(tmp_path / "talk.wav", 3.5), audio_seconds=[1, 3], candidates=["window:window=32"])
    assert [row.length for row in report.lengths] == [50, 150]
    assert report.target.flags(report.candidates[0])[-2:] == ["--audio-seconds", "3"]
    assert (report.trained_length, report.judged.length) == (100, 50)
    assert "Positions were extended from 2 seconds to 3 seconds without training" in report.notes[0]


def test_the_command_diagnoses_sound(talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    with_extractor("wav2vec2", "Wav2Vec2ForCTC", tmp_path / "short")
    typed = ["diagnose", str(tmp_path / "short"), str(talk.parent), "--candidate", "window:window=32", "--candidate", "linear"]
    capsys.readouterr()
    assert _run([*typed, "--audio-seconds", "1,3", "--html", str(tmp_path / "page.html"), "--save", str(tmp_path / "n.json")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("At 149 frames (2.98 s)", "Half of the attention of the average head lies within", "options count frames of 0.02 s",
                  "longattn convert", "--audio-seconds 15", "longattn search"):  # fmt: skip
        assert words in shown
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "tokens" not in page.split("<body")[-1].replace("effective_tokens", "").replace("first_tokens", "")
    assert "149 frames (2.98 s)" in page
    assert "16 = 0.32 s" in page
    numbers = json.loads((tmp_path / "n.json").read_text(encoding="utf-8"))
    assert (numbers["frame_seconds"], [row["length"] for row in numbers["lengths"]]) == (0.02, [49, 149])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--audio-seconds", "9"], "The longest recording has 4.5 seconds, but 9 are needed"),
        (["--audio-seconds", "0"], "must be a number of seconds above 0"),
        (["--audio-seconds", "many"], "are not seconds; give for example 30"),
        (["--lengths", "512"], "is sound; leave it out, or give durations as --audio-seconds"),
        (["--candidate", "transformer_xl"], "reads one segment of a text after the other"),
        (["--candidate", "window2d"], "reads a picture's patches, but a sound is one line"),
    ],
)
def test_a_diagnosis_refuses(options: list[str], sentence: str, talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_extractor("wav2vec2", "Wav2Vec2ForCTC", tmp_path)
    capsys.readouterr()
    assert _run(["diagnose", str(tmp_path), str(talk), *options]) != 0
    assert sentence in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_what_reads_something_else_is_refused(talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_extractor("wav2vec2", "Wav2Vec2ForCTC", tmp_path / "short")
    (tmp_path / "text.txt").write_text("words " * 100)
    BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=99)).save_pretrained(tmp_path / "bert")
    refusals = {
        ("short", str(tmp_path / "text.txt")): "reads sound and no text; give it a recording or a folder: longattn diagnose MODEL talk.wav",
        ("bert", str(talk)): "is of type 'bert', which is not a family of sound; give it a text",
    }
    for (model, file), sentence in refusals.items():
        capsys.readouterr()
        assert _run(["diagnose", str(tmp_path / model), file]) == 1
        assert sentence in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json"):
        diagnose_sound(small_model("wav2vec2", "Wav2Vec2Model"), talk)
    with pytest.raises(BackendError, match=r"is watched in LongWav2Vec2Model; load it as that"):
        diagnose_sound(small_model("wav2vec2", "Wav2Vec2Model"), talk, extractor=AutoFeatureExtractor.from_pretrained(tmp_path / "short"))


def test_a_spectrogram_is_diagnosed_as_a_picture(talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a mechanism keeps of transformers' attention weights, and what its class token attends to."""
    pytest.importorskip("matplotlib")
    base = "audio-spectrogram-transformer"
    model = grid_models.saved(base, grid_models.base_model(base), tmp_path / "ast")
    extractor = ASTFeatureExtractor(num_mel_bins=model.config.num_mel_bins, max_length=model.config.max_length)
    extractor.save_pretrained(tmp_path / "ast")
    report = diagnose_picture(tmp_path / "ast", talk, candidates=["axial", "full"])
    model.set_attn_implementation("eager")
    values = extractor(read_audio(talk, RATE), sampling_rate=RATE, return_tensors="pt").input_values
    with torch.no_grad():
        weights = model.eval()(values, output_attentions=True).attentions
    for layer, expected in zip(report.layers, weights, strict=True):
        attention = expected[0, :, 0, report.grid.prefix :].mean(0)
        torch.testing.assert_close(layer.attention.flatten().float(), attention / attention.sum(), rtol=1e-4, atol=1e-6)
        assert 0 < layer.mass[0] < layer.mass[1] == pytest.approx(1, abs=1e-5)
    assert report.noun == "spectrogram"
    assert tuple(report.pixels.shape) == (model.config.num_mel_bins, model.config.max_length, 3)
    typed = ["diagnose", str(tmp_path / "ast")]
    assert _run([*typed, str(talk), "--candidate", "axial", "--html", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count('src="data:image/png;base64,') == len(report.layers)
    capsys.readouterr()
    assert _run([*typed, str(talk.parent)]) == 1
    assert "is a folder, but one spectrogram is drawn; give one recording" in capsys.readouterr().err
    assert _run([*typed, str(talk), "--audio-seconds", "3"]) == 2
    assert "is not for a model of spectrograms" in " ".join(capsys.readouterr().err.split())


def test_how_far_patches_of_a_spectrogram_look(talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Patches overlap, so that the one before a place that is replaced changes, too."""
    base, folder = "audio-spectrogram-transformer", tmp_path / "ast"
    model = grid_models.saved(base, grid_models.base_model(base), folder)
    size = (model.config.num_mel_bins, model.config.max_length)
    extractor = ASTFeatureExtractor(num_mel_bins=size[0], max_length=size[1])
    extractor.save_pretrained(folder)
    field = measure_receptive_field(folder, talk, samples=12)
    assert (field.image_size, field.patch, field.cell_seconds, field.full) == (size, (3, 3), None, None)
    assert field.measured.furthest == max(field.grid.sizes) - 1
    near = {"mechanism": "local2d", "radius": 1, "prefix_tokens": "none"}
    long = grid_models.long_model(base, grid_models.base_model(base), folder, long_attention=near)
    values = extractor(read_audio(talk, RATE), sampling_rate=RATE, return_tensors="pt").input_values
    measured = measure_receptive_field(long, values, samples=12)
    assert measured.measured.furthest == model.config.num_hidden_layers + 1
    assert measured.full is not None
    assert measured.full.changes == pytest.approx(field.measured.changes, rel=1e-4)
    with pytest.raises(GridError, match=r"has positions for spectrograms of 0\.32 s; leave --audio-seconds out"):
        measure_receptive_field(folder, talk, audio_seconds=0.96)
    long.save_pretrained(folder)
    capsys.readouterr()
    saved = tmp_path / "field.json"
    assert _run(["probe", str(folder), str(talk), "--samples", "2", "--audio-seconds", "0.96", "--save", str(saved)]) == 0
    assert "32 × 96 mel bins × frames" in " ".join(capsys.readouterr().out.split())
    record = json.loads(saved.read_text(encoding="utf-8"))
    assert (record["spectrograms"], record["spectrogram_size"]) == ([str(talk)], [32, 96])
    with pytest.raises(OptionError, match="reads spectrograms; give the length as --audio-seconds"):
        measure_receptive_field(folder, talk, image_size=64)


def _run(arguments: list[str]) -> int:
    try:
        return main(arguments) or 0
    except SystemExit as ended:
        return int(ended.code or 0)
