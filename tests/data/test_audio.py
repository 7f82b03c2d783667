"""Sound as a model reads it: every form that utterances come in, and bad input in a sentence."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.testing import assert_allclose

from hf_longattn.data.audio import read_audio
from hf_longattn.errors import InputError, MissingExtraError
from tests.cases import every_case

RATE = 16_000


def tone(seconds: float = 0.5, rate: int = RATE, pitch: float = 440.0) -> np.ndarray[Any, Any]:
    """A tone with a little noise, (samples,)."""
    noise = np.random.default_rng(0).normal(scale=0.01, size=int(seconds * rate))
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate) + noise).astype(np.float32)


def cell(content: bytes) -> dict[str, Any]:
    """A cell of ``datasets.Audio`` that holds a file."""
    return {"bytes": content, "path": None}


def encoded(samples: Any, rate: int = RATE, form: str = "WAV", subtype: str | None = None) -> dict[str, Any]:
    """A cell with a sound file."""
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=form, subtype=subtype)
    return cell(stream.getvalue())


@pytest.mark.parametrize(
    ("form", "subtype", "error"), [("WAV", "FLOAT", 0), ("WAV", "PCM_16", 1e-4), ("FLAC", "PCM_16", 1e-4)]
)
def test_read_audio_gives_the_same_samples_of_files_and_cells(
    form: str, subtype: str, error: float, tmp_path: Path
) -> None:
    samples = tone()
    path = tmp_path / f"tone.{form.lower()}"
    path.write_bytes(encoded(samples, form=form, subtype=subtype)["bytes"])
    sources = (path, str(path), {"bytes": path.read_bytes(), "path": None}, {"bytes": None, "path": str(path)})
    for source in sources:
        heard = read_audio(source, RATE)
        assert heard.dtype == np.float32
        assert_allclose(heard, samples, atol=error)


@pytest.mark.parametrize("form", ["OGG", "MP3"])
def test_read_audio_reads_compressed_files(form: str) -> None:
    heard = read_audio(encoded(tone(2), form=form), RATE)
    spectrum = np.abs(np.fft.rfft(heard[: 2 * RATE]))
    assert len(heard) == 2 * RATE
    assert abs(spectrum.argmax() / 2 - 440) < 1


@pytest.mark.thorough
def test_read_audio_converts_another_sampling_rate() -> None:
    for rate in (44_100, 8_000):
        heard = read_audio(encoded(tone(1, rate), rate), RATE)
        assert len(heard) == RATE
        assert abs(np.abs(np.fft.rfft(heard)).argmax() - 440) <= 1


def test_read_audio_mixes_several_channels() -> None:
    left, right = tone(pitch=300), tone(pitch=500)
    source = encoded(np.stack([left, right], 1), subtype="FLOAT")
    assert_allclose(read_audio(source, RATE), (left + right) / 2, atol=1e-7)


def not_finite(value: float) -> np.ndarray[Any, Any]:
    samples = tone()
    samples[RATE // 4] = value
    return samples


WHOLE = {form: encoded(tone(2), form=form)["bytes"] for form in ("WAV", "FLAC", "OGG", "MP3", "AIFF")}


@every_case(
    ("source", "sentence"),
    [
        (
            encoded(not_finite(np.nan), subtype="FLOAT"),
            "the sound has values that are not finite, the first at second 0.25",
        ),
        (encoded(not_finite(np.inf), subtype="FLOAT"), "not finite"),
        (encoded(np.full(RATE, 0.25)), "silent"),
        (encoded(np.zeros(RATE)), "silent: all of its 1.00 seconds have the value 0"),
        (encoded(np.zeros(0)), "holds no samples"),
        (cell(b""), "damaged, cut or not a sound file"),
        (cell(b"no sound at all " * 100), "not a sound file"),
        (cell(WHOLE["WAV"][: len(WHOLE["WAV"]) // 2]), r"is cut: it ends after 1\.0 of 2\.0 seconds"),
        (cell(WHOLE["AIFF"][: len(WHOLE["AIFF"]) // 2]), "is cut: it ends after 1.0 of 2.0 seconds"),
        (cell(WHOLE["MP3"][: len(WHOLE["MP3"]) // 2]), "is cut"),
        (cell(WHOLE["FLAC"][: len(WHOLE["FLAC"]) // 2]), "damaged, cut or not a sound file"),
        (cell(WHOLE["FLAC"][:60]), "damaged, cut or not a sound file"),
        (cell(WHOLE["OGG"][: len(WHOLE["OGG"]) // 2]), "holds no samples"),
        ({"bytes": None, "path": None}, "the sound is not a file"),
        (Path("/nowhere/tone.wav"), "'/nowhere/tone.wav' does not exist; correct its path"),
        (Path("/"), "is not a file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_read_audio_refuses_damaged_silent_and_infinite_sound(source: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        read_audio(source, RATE)
    assert "\n" not in str(error.value)


def test_read_audio_accepts_a_header_without_the_length() -> None:
    """Programs that write to a pipe leave the largest number there."""
    sound = bytearray(encoded(tone())["bytes"])
    place = sound.index(b"data") + 4
    sound[place : place + 4] = sound[4:8] = b"\xff" * 4
    assert len(read_audio(cell(bytes(sound)), RATE)) == len(tone())


def test_read_audio_allocates_nothing_for_a_header_that_lies() -> None:
    """A FLAC of half a second whose header tells of weeks is cut, not allocated."""
    sound = bytearray(encoded(tone(), form="FLAC")["bytes"])
    sound[21] |= 0x0F  # the upper four bits of 36 that count the samples
    with pytest.raises(InputError):
        read_audio(cell(bytes(sound)), RATE)


@pytest.mark.parametrize("package", ["soundfile", "scipy"])
def test_read_audio_names_a_package_that_is_not_installed(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = encoded(tone(1, 8_000), 8_000)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[audio\]'"):
        read_audio(sound, RATE)
