"""Sounds as inputs of a model, through its feature extractor: to verify it with, a recording or a seeded sound of any duration; to measure
it with, stretches of recordings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.audio import RECORDING_FILES, Samples, read_audio
from ..data.files import evenly_spread
from ..errors import AudioError, CheckpointError, LengthError, checkpoint_errors
from ..modeling.family.audio_rule import AudioRule
from ..processor_files import FILE
from .audio_seconds import AudioDuration

REPEATED_SECONDS = 30.0
"""Duration of the sound that longer inputs repeat, if only their length matters."""


class SoundInputs:
    """How a model with this rule reads sounds.

    Args:
        rule, config: of the model.
        extractor: its feature extractor; without one, samples are normalised.

    Raises:
        AudioError: the feature extractor takes another sampling rate than the model.
    """

    def __init__(self, rule: AudioRule, config: Any, extractor: Any | None = None) -> None:
        self.rule, self.config, self.extractor = rule, config, extractor
        rate = rule.sampling_rate if extractor is None else int(getattr(extractor, "sampling_rate", rule.sampling_rate))
        if rate != rule.sampling_rate and rule.features is None:
            raise AudioError(
                f"The feature extractor takes {rate:,} samples a second, but the model reads {rule.sampling_rate:,}; correct sampling_rate "
                f"in its {FILE}."
            )
        self.sampling_rate = rate

    def extracted(self, samples: Samples) -> Tensor:
        """The model's input for one sound ``(N,)``, ``(1, N, …)``: computed once, from the whole sound.

        Raises:
            CheckpointError: the feature extractor is damaged, or another model's.
        """
        if self.extractor is None:
            normalised = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
            return torch.from_numpy(normalised)[None]
        with checkpoint_errors("The feature extractor is damaged, or does not fit the sound"):
            how = {"padding": "longest", "truncation": False, "return_tensors": "pt"}  # Whisper's cuts and pads otherwise
            values = self.extractor(samples, sampling_rate=self.sampling_rate, **how)
        if self.rule.input not in values:
            raise CheckpointError(
                f"The feature extractor gives {', '.join(values)}, but the model reads {self.rule.input}; it belongs to another model."
            )
        return values[self.rule.input].float()


class RecordedSounds(SoundInputs):
    """Recordings, each read as a whole and cut afterwards.

    Args:
        rule, config: of the model.
        extractor: its feature extractor.
        recordings: a file, or a folder of files, of which ``count`` are read at most, evenly spread over the folder.

    Raises:
        DataError: there is none.
        AudioError: one cannot be read, or the feature extractor takes another sampling rate than the model.
    """

    def __init__(self, rule: AudioRule, config: Any, extractor: Any, recordings: Path, count: int) -> None:
        super().__init__(rule, config, extractor)
        self.files = evenly_spread(RECORDING_FILES.files(recordings), count)
        self.sounds = [self.extracted(samples) for samples in read_recordings(self.files, self.sampling_rate)]

    @property
    def longest(self) -> float:
        """Seconds of the longest recording."""
        return max(self.rule.seconds(self.rule.as_input(sound).shape[1]) for sound in self.sounds)

    def stretches(self, seconds: float, count: int) -> list[Tensor]:
        """Up to ``count`` stretches of this duration, ``(1, N, …)`` each; from every recording in turn the first, then the next.

        Raises:
            LengthError: no recording is so long.
        """
        length = self.rule.length(seconds)
        length -= length % self.rule.step(self.config)
        rows = [self.rule.as_input(sound) for sound in self.sounds]
        starts = range(0, max(row.shape[1] for row in rows) - length + 1, max(1, length))
        cut = [row[:, start : start + length] for start in starts for row in rows if start + length <= row.shape[1]]
        if not cut:
            raise LengthError(
                f"The longest recording has {self.longest:,.1f} seconds, but {seconds:,.5g} are needed; give a longer one, or a shorter "
                "duration."
            )
        return [self.rule.as_input(row) for row in cut[:count]]


def read_recordings(files: Sequence[Path], sampling_rate: int) -> list[Samples]:
    """The samples of files of the user's, with their channels mixed, at the rate that a model reads.

    Raises:
        AudioError: one cannot be read: see :func:`read_audio`.
    """
    return [read_audio(file, sampling_rate, resample=True, mono=True, otherwise="give another file") for file in files]


class VerificationSound(SoundInputs):
    """Inputs of any duration for a model with this rule.

    Args:
        rule, config: of the model.
        extractor: the source's feature extractor; without one, samples are normalised, and features are seeded.
        recording: a file of the user's, which is repeated where a longer sound is needed.

    Raises:
        AudioError: the recording cannot be read, or the feature extractor takes another sampling rate than the model.
    """

    def __init__(self, rule: AudioRule, config: Any, extractor: Any | None = None, recording: Path | None = None) -> None:
        super().__init__(rule, config, extractor)
        self.recording = recording

    @cached_property
    def _recorded(self) -> Samples | None:
        return None if self.recording is None else read_audio(self.recording, self.sampling_rate, resample=True, mono=True)

    def samples(self, seconds: float) -> Samples:
        """The sound before the feature extractor, ``(N,)``."""
        count = round(seconds * self.sampling_rate)
        recorded = self._recorded
        return seeded_sound(count, self.sampling_rate) if recorded is None else np.resize(recorded, count)

    def features(self, seconds: float) -> Tensor:
        """The model's input for one sound of this duration, ``(1, N, …)``: computed once, from the whole sound."""
        length = max(self.rule.length(seconds), self.rule.length_of(self.config, 1))
        if self.extractor is None and self.rule.features is not None:
            return self.rule.seeded(self.config, seconds)
        return self.extracted(self.samples(length / self.rule.rate))

    def processed(self, seconds: float) -> Tensor:
        """The feature extractor's output for a sound of this duration, with its default settings, as users call it."""
        count = round(seconds * self.sampling_rate)
        samples = np.resize(self.samples(min(seconds, REPEATED_SECONDS)), count)
        extractor: Any = self.extractor
        with checkpoint_errors("The feature extractor is damaged, or does not fit the sound"):
            return extractor(samples, sampling_rate=self.sampling_rate, return_tensors="pt")[self.rule.input]

    def at(self, size: AudioDuration) -> dict[str, Any]:
        """The arguments of a model for one sound of this duration."""
        return self.rule.arguments(self.features(size.seconds))

    def why_chunks_differ(self) -> str:
        """What depends on the whole sound before any attention: of the model's input, and of the model; empty if nothing does."""
        reasons = []
        if getattr(self.extractor, "do_normalize", self.rule.features is None):
            reasons.append(f"{'samples are' if self.rule.features is None else 'features are'} normalised over it")
        return ", and ".join(filter(None, [*reasons, self.rule.why_chunks_differ(self.config)]))

    def describe(self) -> str:
        """What the inputs are, for a report."""
        if self.extractor is None and self.rule.features is not None:
            return "seeded features, since the source has no feature extractor"
        return "a seeded sound" if self.recording is None else f"the recording {self.recording.name}"


def seeded_sound(count: int, rate: int) -> Samples:
    """``count`` samples of a voice without words, the same at every call: harmonics of a gliding tone in syllables, and noise."""
    generator = np.random.default_rng(0)
    seconds = np.arange(count) / rate
    pitch = 130 + 30 * np.sin(2 * np.pi * 0.4 * seconds)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voice = sum(np.sin(number * phase + number) / number for number in range(1, 12))
    syllables = np.clip(np.sin(2 * np.pi * 2.5 * seconds), 0, None)
    return np.asarray(0.2 * voice * syllables + 0.003 * generator.standard_normal(count), np.float32)
