"""What models of sound attend to, by time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoFeatureExtractor, BertConfig, BertModel

from hf_longattn.cli import main
from hf_longattn.data.audio import read_audio
from hf_longattn.errors import BackendError, CheckpointError, InputError
from hf_longattn.families import FAMILIES
from hf_longattn.inspect import diagnose
from tests.cases import every_case
from tests.modeling.audio_models import EVERY_FAMILY, RATE, long_model, recording, small_model, smallest_head, with_extractor


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recording(tmp_path_factory.mktemp("talks") / "talk.wav", 4.5)


@every_case("base", EVERY_FAMILY, of=4)
def test_every_family_of_sound_is_diagnosed(base: str, talk: Path, tmp_path: Path) -> None:
    """What the model attends to is kept by full attention; by a window less, unless the base itself sees no more."""
    with_extractor(base, smallest_head(base), tmp_path, **({"max_source_positions": 100} if base == "whisper" else {}))
    report = diagnose(tmp_path, talk, lengths=[2], candidates=["window:left=3,right=3", "full"], queries=64)
    assert (report.unit, report.is_long, report.model_class) == ("frames", False, smallest_head(base))
    assert report.frame_seconds is not None
    assert report.last.length * report.frame_seconds == pytest.approx(2, abs=3 * report.frame_seconds)
    captured = report.last.captured()
    assert len(captured) == FAMILIES[base].base_config_class.from_pretrained(tmp_path).num_hidden_layers
    torch.testing.assert_close(captured[..., 1], torch.ones_like(captured[..., 1]), rtol=0, atol=1e-5)
    assert bool((captured[..., 0] > 0).all())
    assert bool((captured[..., 0] <= captured[..., 1] + 1e-5).all())


def test_masses_of_sounds_are_those_of_transformers_weights(talk: Path, tmp_path: Path) -> None:
    """By distance and by mechanism, mean over the stretches of a recording."""
    base = with_extractor("wav2vec2", "Wav2Vec2Model", tmp_path)
    report = diagnose(tmp_path, talk, lengths=[1.5], candidates=["window:left=9,right=4"])
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


@pytest.mark.thorough
def test_a_long_model_of_sound_and_its_checkpoint_have_the_same_attention(talk: Path, tmp_path: Path) -> None:
    with_extractor("wav2vec2", "Wav2Vec2ForCTC", tmp_path)
    stock = diagnose(tmp_path, talk, candidates=["window:window=32"], queries=50)
    model = long_model("wav2vec2", "Wav2Vec2ForCTC", tmp_path, long_attention={"mechanism": "full"})
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    long = diagnose(model, talk, processor=extractor, candidates=["window:window=32"], queries=50)
    assert (stock.is_long, long.is_long) == (False, True)
    torch.testing.assert_close(long.last.captured(), stock.last.captured(), rtol=0, atol=1e-6)
    assert stock.notes == ("The longest recording has 4.5 seconds; a longer one shows greater distances.",)


def test_longer_sounds_than_the_checkpoint_reads_are_refused(tmp_path: Path) -> None:
    with_extractor("whisper", "WhisperModel", tmp_path, max_source_positions=100)
    talk = recording(tmp_path / "talk.wav", 3.5)
    with pytest.raises(InputError, match=r"reads up to 2 seconds, but 3 seconds were given; convert it first"):
        diagnose(tmp_path, talk, lengths=[1, 3], candidates=["window:window=32"])
    assert [row.length for row in diagnose(tmp_path, talk, candidates=["window:window=32"], queries=8).lengths] == [100]


def test_the_inspect_command_diagnoses_sound(talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_extractor("wav2vec2", "Wav2Vec2ForCTC", tmp_path / "short")
    typed = ["inspect", str(tmp_path / "short"), str(talk.parent), "--candidate", "window:window=32", "--candidate", "linear"]
    capsys.readouterr()
    assert _run([*typed, "--lengths", "1,3"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("At 149 frames (2.98 s)", "Half of the attention of the average head lies within", "options count frames of 0.02 s",
                  "add to longattn convert: --mechanism window"):  # fmt: skip
        assert words in shown
    assert "tokens" not in shown
    assert _run([*typed, "--lengths", "1", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert (numbers["frame_seconds"], [row["length"] for row in numbers["lengths"]]) == (0.02, [49])


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--lengths", "9"], "The longest recording has 4.5 seconds, but 9 are needed"),
        (["--lengths", "0"], "must be a number of seconds above 0"),
        (["--lengths", "many"], "are not seconds; give for example --lengths 30"),
        (["--device", "toaster"], "There is no device 'toaster'"),
        (["--candidate", "transformer_xl"], "reads one segment of a text after the other"),
        (["--candidate", "window2d"], "reads an image's patches, but a sound is one line"),
    ],
)
def test_the_inspect_command_refuses_durations_and_candidates_that_do_not_fit(
    options: list[str], sentence: str, talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_extractor("wav2vec2", "Wav2Vec2ForCTC", tmp_path)
    capsys.readouterr()
    assert _run(["inspect", str(tmp_path), str(talk), *options]) != 0
    assert sentence in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_diagnosis_refuses_models_that_read_something_else(talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_extractor("wav2vec2", "Wav2Vec2ForCTC", tmp_path / "short")
    (tmp_path / "text.txt").write_text("words " * 100)
    BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=99)).save_pretrained(tmp_path / "bert")
    refusals = {
        ("short", str(tmp_path / "text.txt")): "reads sounds and no text; type longattn inspect MODEL FILE for images and recordings",
        ("bert", str(talk)): "reads no images on a grid of patches; give a text instead",
    }
    for (model, file), sentence in refusals.items():
        capsys.readouterr()
        assert _run(["inspect", str(tmp_path / model), file]) == 1
        assert sentence in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json"):
        diagnose(small_model("wav2vec2", "Wav2Vec2Model"), talk)
    with pytest.raises(BackendError, match=r"is watched in LongWav2Vec2Model; load it as that"):
        diagnose(small_model("wav2vec2", "Wav2Vec2Model"), talk, processor=AutoFeatureExtractor.from_pretrained(tmp_path / "short"))


def _run(arguments: list[str]) -> int:
    try:
        return main(arguments) or 0
    except SystemExit as ended:
        return int(ended.code or 0)
