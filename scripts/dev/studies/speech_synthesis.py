"""Speech for studies, synthesised by espeak-ng: words in several voices with exact transcripts and times; the same for a seed.

espeak-ng is a Debian package (``apt install espeak-ng``); what it says is made when it is needed and not stored.
"""

from __future__ import annotations

import functools
import io
import shutil
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from hf_longattn.data.audio import Samples, resampled
from hf_longattn.errors import AudioError

PROGRAM = "espeak-ng"
RATE = 8_000
"""Samples in a second of everything that is made here: speech of telephones."""
DIGITS = {
    "0": "zero", "1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six", "7": "seven", "8": "eight", "9": "nine",
}  # fmt: skip
"""What is written -> what is said."""
QUIET = 0.01
"""Samples at the ends of a word below this share of its largest are cut off."""
LEVEL = 0.1
"""The root mean square of a word's samples."""


class Voice(NamedTuple):
    """A voice of espeak-ng: its name with a variant, words a minute, and pitch from 0 to 99."""

    name: str
    speed: int
    pitch: int


ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029")
VARIANTS = ("", "+m1", "+m3", "+m7", "+f1", "+f2", "+f4")
VOICES = tuple(
    Voice(f"{accent}{variant}", 140 + 15 * ((3 * place + 2 * other) % 5), 30 + 10 * ((place + 3 * other) % 5))
    for place, accent in enumerate(ACCENTS)
    for other, variant in enumerate(VARIANTS)
)
"""Voices that differ in accent, speaker, speed and pitch."""
HELD_OUT = VOICES[3::7] + VOICES[6::14]
"""Voices that no model is trained on: one or two of every accent."""
TRAINED = tuple(voice for voice in VOICES if voice not in HELD_OUT)


class Spoken(NamedTuple):
    """A word in a recording, from ``start`` to ``end`` in seconds."""

    text: str
    start: float
    end: float


class Recording(NamedTuple):
    """Samples at :data:`RATE` and the words in them, in their order."""

    samples: Samples
    words: tuple[Spoken, ...]

    @property
    def text(self) -> str:
        """The transcript."""
        return " ".join(word.text for word in self.words)


class Sentence(NamedTuple):
    """How words become a recording.

    voices: taken in turn, one for each word.
    gap: shortest and longest pause between words, in seconds.
    noise: the least and the highest ratio of speech to noise, in decibels.
    """

    voices: Sequence[Voice]
    gap: tuple[float, float] = (0.04, 0.25)
    noise: tuple[float, float] = (15.0, 35.0)


@functools.cache
def say(text: str, voice: Voice) -> Samples:
    """A word or phrase without silence around it, at one level.

    Raises:
        AudioError: espeak-ng is not installed, or cannot say it.
    """
    if shutil.which(PROGRAM) is None:
        raise AudioError(f"the speech of this study is synthesised by {PROGRAM}, which is not installed; type apt install {PROGRAM}")
    line = [PROGRAM, "-v", voice.name, "-s", str(voice.speed), "-p", str(voice.pitch), "-z", "--stdout", text]
    done = subprocess.run(line, capture_output=True, check=False)
    if done.returncode or not done.stdout:
        raise AudioError(f"{PROGRAM} cannot say {text!r} in the voice {voice.name}: {done.stderr.decode(errors='replace').strip()}")
    samples, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    samples = resampled(samples, rate, RATE)
    loud = np.flatnonzero(np.abs(samples) > QUIET * np.abs(samples).max())
    samples = samples[loud[0] : loud[-1] + 1]
    return samples * np.float32(LEVEL / np.sqrt(np.mean(samples**2)))


def recording(words: Sequence[str], sentence: Sentence, random: np.random.Generator) -> Recording:
    """Words of :data:`DIGITS`, or any others, said one after another with pauses and noise.

    Args:
        random: of pauses and noise.
    """
    pieces: list[NDArray[np.float32]] = []
    spoken: list[Spoken] = []
    place = 0

    def pause() -> None:
        nonlocal place
        pieces.append(np.zeros(round(random.uniform(*sentence.gap) * RATE), np.float32))
        place += len(pieces[-1])

    pause()
    for number, word in enumerate(words):
        pieces.append(say(DIGITS.get(word, word), sentence.voices[number % len(sentence.voices)]))
        spoken.append(Spoken(word, place / RATE, (place + len(pieces[-1])) / RATE))
        place += len(pieces[-1])
        pause()
    samples = np.concatenate(pieces)
    level = LEVEL * 10 ** (-random.uniform(*sentence.noise) / 20)
    return Recording(samples + (level * random.standard_normal(len(samples), np.float32)).astype(np.float32), tuple(spoken))


def digits(random: np.random.Generator, voices: Sequence[Voice], count: int) -> Recording:
    """So many digits in one of the voices."""
    words = [str(number) for number in random.integers(0, 10, count)]
    return recording(words, Sentence([voices[int(random.integers(len(voices)))]]), random)


def long_digits(random: np.random.Generator, voices: Sequence[Voice], seconds: float) -> Recording:
    """Digits for at least this many seconds, which a speaker says in groups of 3 to 12 before another one does."""
    parts: list[Recording] = []
    while sum(len(part.samples) for part in parts) < seconds * RATE:
        parts.append(digits(random, voices, int(random.integers(3, 13))))
    return joined(parts)


def joined(parts: Sequence[Recording]) -> Recording:
    """Recordings one after another."""
    words: list[Spoken] = []
    place = 0
    for part in parts:
        words += [Spoken(word.text, word.start + place / RATE, word.end + place / RATE) for word in part.words]
        place += len(part.samples)
    return Recording(np.concatenate([part.samples for part in parts]), tuple(words))
