"""What recordings with far-apart evidence are made of: digits that others say, what is said or played among them, and log-mel features."""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ParakeetFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from hf_longattn.data.audio import Hearing, Samples

from .far_task import Labelled, Read, Shown, Task
from .speech_synthesis import RATE, TRAINED, Voice, long_digits

MARGIN = 0.1
"""Seconds of noise before and after what is put into a recording."""
SNR = (15.0, 35.0)
"""The least and the highest ratio of what is put into a recording to the noise around it, in decibels."""
BABBLE = 1_800.0
"""Seconds of digits from which recordings are cut."""
ROWS_PER_SECOND = 50
"""Rows of log-mel features in a second."""
QUIETEST = 1e-6
"""The power below which all is silence."""
SCALED = 60.0
"""Seconds of digits whose levels give the mean and deviation of :class:`FixedScale`."""
UNLIKELY = -1e4
"""The logit of a class that only tokens have."""


Placed = tuple["Sound", tuple[int, ...]]
"""A sound in a recording, and the label of the tokens in its time: one, or one for each row of patches."""


class Sound(NamedTuple):
    """Samples that are put into a recording at ``start`` seconds."""

    samples: Samples
    start: float

    @property
    def end(self) -> float:
        """In seconds."""
        return self.start + len(self.samples) / RATE


def babble(random: np.random.Generator, voices: tuple[Voice, ...], seconds: float) -> Samples:
    """Digits that several voices say, so many seconds of a long recording, from somewhere in a word to somewhere in another."""
    samples = long_babble(voices)
    length = round(seconds * RATE)
    first = int(random.integers(len(samples) - length))
    return samples[first : first + length]


@functools.cache
def long_babble(voices: tuple[Voice, ...]) -> Samples:
    """The digits of all recordings with these voices, :data:`BABBLE` seconds."""
    return long_digits(np.random.default_rng(0), voices, BABBLE).samples


def with_sounds(background: Samples, sounds: Sequence[Sound], random: np.random.Generator) -> Samples:
    """The background with sounds in its place, each with noise of its own level around and under it."""
    samples = background.copy()
    for sound in sounds:
        first = max(0, round((sound.start - MARGIN) * RATE))
        last = min(len(samples), round((sound.end + MARGIN) * RATE))
        level = np.sqrt(np.mean(sound.samples**2)) * 10 ** (-random.uniform(*SNR) / 20)
        samples[first:last] = level * random.standard_normal(last - first, np.float32)
        begin = round(sound.start * RATE)
        samples[begin : begin + len(sound.samples)] += sound.samples[: len(samples) - begin]
    return samples


@functools.cache
def hearing(features: int) -> Hearing:
    """How recordings become log-mel features, normalised over the recording as Parakeet's are."""
    extractor = ParakeetFeatureExtractor(
        feature_size=features, sampling_rate=RATE, hop_length=RATE // ROWS_PER_SECOND, n_fft=256, win_length=200
    )
    return Hearing(extractor)


def log_mel(recordings: Sequence[Samples], features: int) -> Tensor:
    """``(recordings, rows, features)`` of recordings of one length."""
    rows = len(recordings[0]) * ROWS_PER_SECOND // RATE
    return hearing(features).inputs(list(recordings))["input_features"][:, :rows]


class FixedScale(NamedTuple):
    """Log-mel features normalised by one mean and one deviation of all recordings, as by AST's extractor: what is in a recording changes
    the features of its own time alone.

    features: mel bins.
    rows_per_second: rows of features in a second.
    window: samples whose spectrum a row is.
    """

    features: int
    rows_per_second: int
    window: int

    def levels(self, recordings: Sequence[Samples]) -> Tensor:
        """``(recordings, rows, mel bins)`` of recordings of one length: the logarithms of power."""
        samples = torch.from_numpy(np.stack(recordings))
        step, shape = RATE // self.rows_per_second, torch.hann_window(self.window)
        spectra = torch.stft(samples, self.window, step, window=shape, return_complex=True)
        power = spectra[..., : samples.shape[1] // step].abs().square().transpose(1, 2) @ mel_filters(self.window, self.features)
        return power.clamp(min=QUIETEST).log()

    def normalised(self, recordings: Sequence[Samples]) -> Tensor:
        """``(recordings, rows, mel bins)`` of recordings of one length."""
        mean, deviation = mean_and_deviation(self)
        return (self.levels(recordings) - mean) / deviation


@functools.cache
def mel_filters(window: int, features: int) -> Tensor:
    """``(frequencies, mel bins)``."""
    scale = {"norm": "slaney", "mel_scale": "slaney"}
    return torch.from_numpy(mel_filter_bank(window // 2 + 1, features, 0.0, RATE / 2, RATE, **scale)).float()


@functools.cache
def mean_and_deviation(scale: FixedScale) -> tuple[float, float]:
    """The levels of digits that the voices of training say."""
    of_digits = scale.levels([long_babble(TRAINED)[: round(SCALED * RATE)]])
    return of_digits.mean().item(), of_digits.std().item()


def in_chunks(rows: int, pooling: Literal["mean", "max"]) -> Read:
    """Reads recordings as chunks of so many rows of the model's input, whose logits are pooled by their mean or maximum."""

    def read(model: nn.Module, inputs: Tensor, labelled: Labelled) -> Tensor:
        chunks = inputs.unflatten(1, (-1, rows))
        logits = whole(model, chunks.flatten(0, 1), labelled).unflatten(0, chunks.shape[:2])
        return logits.mean(1) if pooling == "mean" else logits.amax(1)

    return read


def whole(model: nn.Module, inputs: Tensor, labelled: Labelled) -> Tensor:
    """Reads recordings in one pass."""
    return model(inputs).logits


def hint_labels(sounds: Sequence[Placed], rows: int, columns: int, per_second: float, background: int) -> Tensor:
    """``(rows * columns,)``, row by row: the label of the sound in whose time the middle of a token is, or ``background``."""
    labels, times = torch.full((rows, columns), background), (torch.arange(columns) + 0.5) / per_second
    for sound, of_rows in sounds:
        labels[:, (times > sound.start) & (times < sound.end)] = torch.tensor(of_rows)[:, None]
    return labels.flatten()


def with_hints(logits: Tensor, hints: Tensor) -> Tensor:
    """``(B, 1 + tokens, classes)`` of the logits ``(B, C)`` of recordings and those ``(B, tokens, classes)`` of their tokens."""
    padded = nn.functional.pad(logits, (0, hints.shape[-1] - logits.shape[-1]), value=UNLIKELY)
    return torch.cat([padded[:, None], hints], 1)


class SoundTask(Task):
    """Recordings and their labels. A small model starts to learn from the sounds in them, whose tokens have labels as well."""

    item = "recording"
    unit = "s"
    making = "synthesising"
    baselines = ("chunks", "chunks-max")
    hinted = True
    hint_classes: ClassVar[int]
    """Of the tokens of sounds, and a last one of all others."""
    features: ClassVar[int]
    """Of a row of the log-mel spectrogram."""
    hinted_rows: ClassVar[int] = 1
    """Tokens at a time: the rows of a grid of patches."""

    @abc.abstractmethod
    def recording(self, shown: Shown, random: np.random.Generator) -> tuple[Samples, int, Sequence[Placed]]:
        """The samples of a recording, its label, and the sounds that were put into it."""

    def spectrograms(self, recordings: Sequence[Samples]) -> Tensor:
        """``(recordings, rows, features)`` of recordings of one length."""
        return log_mel(recordings, self.features)

    @abc.abstractmethod
    def inputs(self, features: Tensor) -> Tensor:
        """The model's input of log-mel features ``(B, rows, features)``."""

    @abc.abstractmethod
    def columns(self, seconds: int) -> int:
        """Tokens along time."""

    def batch(self, shown: Shown, count: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The model's input and labels ``(count,)``, or with hints ``(count, 1 + tokens)``."""
        recordings, labels, sounds = zip(*(self.recording(shown, random) for _ in range(count)), strict=True)
        inputs, rows = self.inputs(self.spectrograms(recordings)), torch.tensor(labels)
        if not shown.hints:
            return inputs, rows
        columns = self.columns(shown.size)
        hints = [hint_labels(placed, self.hinted_rows, columns, columns / shown.size, self.hint_classes - 1) for placed in sounds]
        return inputs, torch.cat([rows[:, None], torch.stack(hints)], 1)

    def small_logits(self, model: Any, inputs: Tensor, labelled: Labelled) -> Tensor:
        return model.both(inputs) if labelled == "both" else model(inputs).logits
