"""Articles read aloud by espeak-ng and flite, with their transcripts, at 16 kHz; the same for a seed.

Both programs are Debian packages (``apt install espeak-ng flite``). What they say is made when it is needed and not stored.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from hf_longattn.data.audio import Samples, resampled
from hf_longattn.errors import AudioError

RATE = 16_000
LEVEL = 0.1
"""The root mean square of a sentence's samples."""
PAUSE = (0.15, 0.6)
"""Shortest and longest pause between sentences, in seconds."""
NOISE = (15.0, 35.0)
"""The least and the highest ratio of speech to noise, in decibels."""
PLAIN = re.compile(r"[A-Z][A-Za-z ,']{30,180}\.")
"""Sentences without numbers, abbreviations and foreign letters, whose words are written as they are said."""


class Reader(NamedTuple):
    """A voice: the program, its voice, and words a minute (espeak-ng) or the stretch of durations (flite)."""

    program: str
    voice: str
    speed: float


TRAINED = [
    *(Reader("espeak-ng", voice, speed) for voice in ("en-us", "en-gb+m3", "en-gb-scotland+f2", "en-us+f1") for speed in (140, 165, 190)),
    *(Reader("flite", voice, stretch) for voice in ("kal16", "awb", "rms") for stretch in (0.9, 1.0, 1.15)),
]
HELD_OUT = [Reader("flite", "slt", stretch) for stretch in (0.95, 1.0, 1.1)]
"""A voice that no model is trained on, and that the published one understands."""


class Talk(NamedTuple):
    """Samples at :data:`RATE` and what is said in them."""

    samples: Samples
    text: str


def sentences(file: Path) -> list[str]:
    """The plain sentences of a file of articles in the form of wikitext, in their order."""
    text = file.read_text(encoding="utf-8").replace(" ,", ",").replace(" .", ".").replace(" '", "'").replace("<unk>", "#")
    return [found.strip() for found in PLAIN.findall(" ".join(text.split())) if " . " not in found]


def say(text: str, reader: Reader) -> Samples:
    """A sentence at one level.

    Raises:
        AudioError: the program is not installed, or cannot say it.
    """
    if shutil.which(reader.program) is None:
        raise AudioError(f"this study needs {reader.program}, which is not installed; type apt install {reader.program}")
    line = {
        "espeak-ng": ["espeak-ng", "-v", reader.voice, "-s", f"{reader.speed:.0f}", "--stdout", text],
        "flite": ["flite", "-voice", reader.voice, "--setf", f"duration_stretch={reader.speed}", "-t", text, "-o", "/dev/stdout"],
    }[reader.program]
    done = subprocess.run(line, capture_output=True, check=False)
    if done.returncode or not done.stdout:
        raise AudioError(f"{reader.program} cannot say {text!r}: {done.stderr.decode(errors='replace').strip()}")
    samples, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    samples = resampled(samples, rate, RATE)
    return samples * np.float32(LEVEL / np.sqrt(np.mean(samples**2)))


def talk(texts: Sequence[str], reader: Reader, seconds: float, random: np.random.Generator) -> Talk:
    """As many sentences, from the first on, as fit into so many seconds, with pauses and noise."""
    pieces: list[Samples] = []
    said: list[str] = []
    for text in texts:
        pause = np.zeros(round(random.uniform(*PAUSE) * RATE), np.float32)
        spoken = np.concatenate([say(text, reader), pause])
        if pieces and sum(map(len, pieces)) + len(spoken) > seconds * RATE:
            break
        pieces.append(spoken)
        said.append(text)
    samples = np.concatenate(pieces)
    level = LEVEL * 10 ** (-random.uniform(*NOISE) / 20)
    return Talk(samples + (level * random.standard_normal(len(samples), np.float32)).astype(np.float32), " ".join(said))


def talks(texts: Sequence[str], readers: Sequence[Reader], count: int, seconds: tuple[float, float], seed: int) -> list[Talk]:
    """Talks of random lengths between two durations, each by a random voice and from a random sentence on."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        start = int(random.integers(len(texts) - 60))
        reader = readers[int(random.integers(len(readers)))]
        made.append(talk(texts[start : start + 60], reader, float(random.uniform(*seconds)), random))
    return made


def write(made: Sequence[Talk], folder: Path) -> Path:
    """Write talks as audio files with a .txt file each, as ``longattn train seq2seq --audio`` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(made):
        soundfile.write(folder / f"{number:04}.wav", one.samples, RATE)
        (folder / f"{number:04}.txt").write_text(one.text, encoding="utf-8")
    return folder
