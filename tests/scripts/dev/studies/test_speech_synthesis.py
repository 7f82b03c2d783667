"""Speech of studies is the same for a seed, with exact words and times; errors are counted where they are."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from hf_longattn.errors import AudioError
from scripts.dev.studies import speech_synthesis
from scripts.dev.studies.speech_synthesis import (
    DIGITS,
    HELD_OUT,
    RATE,
    TRAINED,
    VOICES,
    Sentence,
    digits,
    long_digits,
    recording,
    say,
)

needs_espeak = pytest.mark.skipif(
    shutil.which(speech_synthesis.PROGRAM) is None,
    reason="speech is synthesised by espeak-ng, which is not installed: apt install espeak-ng",
)
FEW = TRAINED[:3]


def test_voices_differ_and_those_held_out_are_not_trained_on() -> None:
    assert len(set(VOICES)) == len(VOICES) == len(TRAINED) + len(HELD_OUT)
    assert {voice.name.partition("+")[0] for voice in HELD_OUT} == {voice.name.partition("+")[0] for voice in VOICES}


@needs_espeak
def test_a_seed_says_the_same() -> None:
    first, again, other = (digits(np.random.default_rng(seed), FEW, 4) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.samples, again.samples)
    assert first.words == again.words
    assert first.words != other.words


@needs_espeak
def test_words_are_where_they_are_said() -> None:
    spoken = recording(["7", "hello"], Sentence([FEW[0]], noise=(90.0, 90.0)), np.random.default_rng(0))
    assert spoken.text == "7 hello"
    for word, text in zip(spoken.words, (DIGITS["7"], "hello"), strict=True):
        start, end = round(word.start * RATE), round(word.end * RATE)
        np.testing.assert_allclose(spoken.samples[start:end], say(text, FEW[0]), atol=1e-4)
        assert np.abs(spoken.samples[start - 100 : start]).max() < 1e-3
    assert spoken.words[0].end < spoken.words[1].start


@needs_espeak
def test_long_recordings() -> None:
    random = np.random.default_rng(0)
    spoken = long_digits(random, FEW, 20.0)
    assert 20.0 <= len(spoken.samples) / RATE < 30.0
    times = [time for word in spoken.words for time in (word.start, word.end)]
    assert times == sorted(times)


def test_without_espeak_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_synthesis.shutil, "which", lambda name: None)
    with pytest.raises(AudioError, match=r"espeak-ng, which is not installed; type apt install espeak-ng"):
        say("a word that no test has said", FEW[0])
