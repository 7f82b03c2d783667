"""How far models of sound look, and what they attend to, by time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_longattn.cli import main
from hf_longattn.diagnostics import measure_receptive_field
from hf_longattn.errors import CheckpointError, LengthError, OptionError
from hf_longattn.families import FAMILIES
from tests.modeling.audio_models import EVERY_FAMILY, long_model, recording, small_model, smallest_head, with_extractor

WINDOW = {"mechanism": "window", "left": 3, "right": 3}


@pytest.mark.parametrize("base", EVERY_FAMILY)
def test_how_far_every_family_looks(base: str, tmp_path: Path) -> None:
    with_extractor(base, smallest_head(base), tmp_path / "short", **({"max_source_positions": 100} if base == "whisper" else {}))
    model = long_model(base, smallest_head(base), tmp_path / "short", long_attention=WINDOW)
    model.save_pretrained(tmp_path / "short")
    field = measure_receptive_field(tmp_path / "short", recording(tmp_path / "talk.wav", 2.5), samples=2, audio_seconds=2.4)
    rule: Any = FAMILIES[base].audio
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
    assert "reads sound, to which --image-size does not apply" in capsys.readouterr().err
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


def test_a_diagnosis_says_which_commands_take_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_extractor("wav2vec2", "Wav2Vec2ForCTC", tmp_path / "short")
    file = recording(tmp_path / "talk.wav", 1)
    capsys.readouterr()
    assert _run(["diagnose", str(tmp_path / "short"), str(file)]) == 1
    assert "reads sound and no text; longattn search measures what mechanisms keep" in capsys.readouterr().err


def _run(arguments: list[str]) -> int:
    try:
        return main(arguments) or 0
    except SystemExit as ended:
        return int(ended.code or 0)
