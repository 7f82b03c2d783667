"""Spectrograms whose label needs a sound and others long after it: a small AST that heard seconds, converted to minutes.

There is a hiss in one of three bands of frequencies. Later a rising, a falling and a pulsed tone sound together, one in each band, and the
label is the kind of that in the band of the hiss. In short recordings they are anywhere, in longer ones about half the recording apart.
Around them voices say digits. In the control recordings the hiss is left out: no model can be better than chance.

A spectrogram is a grid of frequency and time: patches of 16 mel bins and 0.5 s, four in a column. As by AST's extractor, levels are
normalised by one mean and one deviation of all recordings: those of each recording, or of each of its mel bins, would tell every patch of a
short one, but not of a long one, in which band the hiss is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import ASTConfig, ASTForAudioClassification

from hf_longattn.data.audio import Samples

from .far_running import FULL, Stage, run_study
from .far_sounds import MARGIN, FixedScale, Placed, Sound, SoundTask, babble, in_chunks, whole, with_hints, with_sounds
from .far_systems import POSITION_SCALE, waves
from .far_task import Shown, System, converted, plain
from .speech_synthesis import HELD_OUT, LEVEL, RATE, TRAINED

FEATURES, PATCH = 64, 16
"""Mel bins, and mel bins and rows of a patch."""
ROWS_PER_SECOND = 32
"""Rows of a spectrogram in a second."""
SCALE = FixedScale(FEATURES, ROWS_PER_SECOND, window=512)
BANDS = ((640, 1140), (1260, 2100), (2300, 3800))
"""The frequencies in Hz of each band: those of the second, third and fourth row of patches."""
RISING, FALLING, PULSED = range(3)
SOUNDING = (1.5, 2.0)
"""Shortest and longest duration of the tones in seconds."""
SPREAD = 3.0
"""Decibels by which a sound is louder or quieter than words, at most."""
HISSING = 1.0
"""Seconds of the hiss."""
ANYWHERE = 8.0
"""Seconds of a recording in which sounds are anywhere. In longer ones the tones start at least half of the rest after the hiss."""


def hiss(band: tuple[int, int], random: np.random.Generator) -> Samples:
    """Noise of a band."""
    length = round(HISSING * RATE)
    spectrum = np.fft.rfft(random.standard_normal(length))
    frequencies = np.fft.rfftfreq(length, 1 / RATE)
    spectrum[(frequencies < band[0]) | (frequencies > band[1])] = 0
    return at_level(np.fft.irfft(spectrum, length), random)


def at_level(wave: NDArray[np.float64], random: np.random.Generator) -> Samples:
    """Samples within :data:`SPREAD` decibels of the level of words."""
    return (LEVEL * 10 ** (random.uniform(-SPREAD, SPREAD) / 20) * wave / np.sqrt(np.mean(wave**2))).astype(np.float32)


def tone(kind: int, band: tuple[int, int], seconds: float, random: np.random.Generator) -> Samples:
    """A rising, falling or pulsed tone that uses much of a band."""
    margins = random.uniform(0, 0.15, 2) * (band[1] - band[0])
    low, high = band[0] + margins[0], band[1] - margins[1]
    time = np.arange(round(seconds * RATE)) / RATE
    if kind == PULSED:
        pitch = np.full_like(time, random.uniform(low, high))
        loud = (time * random.uniform(3, 5) + random.uniform()) % 1 < 0.5
    else:
        pitch = np.linspace(low, high, len(time)) if kind == RISING else np.linspace(high, low, len(time))
        loud = np.ones_like(time)
    wave = np.sin(2 * np.pi * (np.cumsum(pitch) / RATE + random.uniform())) * loud
    return at_level(wave, random)


def places(seconds: float, sounding: float, random: np.random.Generator) -> tuple[float, float]:
    """Where the hiss and the tones that sound so long start, each pair of places as likely as another."""
    least = HISSING + 2 * MARGIN + max(0.0, seconds - ANYWHERE) / 2
    before, between = np.sort(random.uniform(0, seconds - 2 * MARGIN - least - sounding, 2))
    return MARGIN + float(before), MARGIN + float(between) + least


class HintedClassifier(ASTForAudioClassification):
    """A small model with a head for the labels of patches, by which it starts to learn; it is not saved."""

    _keys_to_ignore_on_save = ["hints.weight", "hints.bias"]

    def __init__(self, config: ASTConfig, classes: int) -> None:
        super().__init__(config)
        self.hints = nn.Linear(config.hidden_size, classes)

    def both(self, inputs: Tensor) -> Tensor:
        """``(B, 1 + patches, classes)``: the logits of spectrograms and of their patches."""
        outputs = self.audio_spectrogram_transformer(inputs)
        return with_hints(self.classifier(outputs.pooler_output), self.hints(outputs.last_hidden_state[:, 2:]))


class Events(SoundTask):
    """The kind of the tone in the band that a hiss has named; easier recordings have no other tone."""

    name = "events"
    classes = 3
    easy_share = 0.5
    features = FEATURES
    hinted_rows = FEATURES // PATCH
    hint_classes = 3 + 3 + 1 + 1 + 1
    """Tones of each kind in the band of the hiss, those in other bands, the hiss, the rest of its band, and the rest."""
    defaults = {
        "systems": ["chunks", "chunks-max", "half-full", FULL],
        "stages": [Stage(16, 768, 16), Stage(32, 384, 16), Stage(64, 256, 8), Stage(128, 128, 4), Stage(240, 96, 2)],
        "short_size": 8, "halved": 0.0, "short_batch": 32, "short_minutes": 1.5, "test_examples": 60, "other_examples": 12,
        "memory_batch": 1,
    }  # fmt: skip

    def recording(self, shown: Shown, random: np.random.Generator) -> tuple[Samples, int, Sequence[Placed]]:
        voices = HELD_OUT if shown.held_out else TRAINED
        kinds, named = [int(kind) for kind in random.permutation(self.classes)], int(random.integers(len(BANDS)))
        seconds, is_easy = random.uniform(*SOUNDING), random.random() < shown.easy
        tones = [tone(kind, band, seconds, random) for kind, band in zip(kinds, BANDS, strict=True)]
        chord = tones[named] if is_easy else tones[0] + tones[1] + tones[2]
        hissing_from, chord_from = places(shown.size, seconds, random)
        nothing = self.hint_classes - 1

        def in_band(label: int, others: Sequence[int] = (nothing,) * len(BANDS)) -> tuple[int, ...]:
            return (nothing, *others[:named], label, *others[named + 1 :])

        tones_elsewhere = [nothing if is_easy else len(kinds) + kind for kind in kinds]
        placed: list[Placed] = [
            (Sound(chord, chord_from), in_band(kinds[named], tones_elsewhere)),
            (Sound(hiss(BANDS[named], random), hissing_from), in_band(2 * len(kinds))),
        ]
        if shown.control:
            placed.pop()
        samples = with_sounds(babble(random, voices, shown.size), [sound for sound, _ in placed], random)
        if not shown.control:
            placed.insert(0, (Sound(samples, 0.0), in_band(nothing - 1)))
        return samples, kinds[named], placed

    def spectrograms(self, recordings: Sequence[Samples]) -> Tensor:
        return SCALE.normalised(recordings)

    def inputs(self, features: Tensor) -> Tensor:
        return features

    def columns(self, seconds: int) -> int:
        return (seconds * ROWS_PER_SECOND - PATCH) // PATCH + 1

    def small_model(self, args: argparse.Namespace, seed: int) -> HintedClassifier:
        config = ASTConfig(
            hidden_size=args.width, num_hidden_layers=args.layers, num_attention_heads=max(1, args.width // 32),
            intermediate_size=4 * args.width, patch_size=PATCH, frequency_stride=PATCH, time_stride=PATCH, num_mel_bins=FEATURES,
            max_length=args.short_size * ROWS_PER_SECOND, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            num_labels=self.classes,
        )  # fmt: skip
        model = HintedClassifier(config, self.hint_classes)
        table = model.audio_spectrogram_transformer.embeddings.position_embeddings
        of_rows = waves(self.hinted_rows, 1, args.width)  # of columns it learns what it needs: sounds are anywhere
        table.data[0, 2:] = POSITION_SCALE * of_rows.repeat_interleave(self.columns(args.short_size), 0)
        return model

    def systems(self, args: argparse.Namespace) -> dict[str, System]:
        window = {"mechanism": "window2d", "window": [self.hinted_rows, self.columns(args.short_size)]}
        full = {"mechanism": "full"}
        short, rows = plain(ASTForAudioClassification), args.short_size * ROWS_PER_SECOND
        last = args.layers - 1

        def with_attention(attention: Mapping[str, Any]) -> Callable[[Path, int], nn.Module]:
            return converted(
                "audio-spectrogram-transformer",
                ASTForAudioClassification,
                attention,
                lambda size: {"long_max_length": size * ROWS_PER_SECOND, "position_extension": "tile"},
            )

        return {
            "chunks": System(f"chunks of {args.short_size} s, mean of their logits", short, in_chunks(rows, "mean")),
            "chunks-max": System(f"chunks of {args.short_size} s, maximum of their logits", short, in_chunks(rows, "max")),
            "windows": System("window2d without a global token", with_attention({**window, "prefix_tokens": "reads"}), whole),
            "global": System("window2d with global class and distillation tokens", with_attention(window), whole),
            "last-full": System("window2d, the last layer full", with_attention({**window, "layers": {last: full}}), whole),
            "axial": System("axial in every layer", with_attention({"mechanism": "axial"}), whole),
            "one-full": System("window2d, the layer before the last full", with_attention({**window, "layers": {last - 1: full}}), whole),
            "half-full": System(
                "window2d, every second layer full",
                with_attention({**window, "layers": dict.fromkeys(range(0, args.layers, 2), full)}),
                whole,
            ),
            FULL: System("full attention", with_attention(full), whole),
        }

    def about_model(self, settings: Mapping[str, Any]) -> str:
        seconds = PATCH / ROWS_PER_SECOND
        return f"An AST of {settings['layers']} layers, width {settings['width']} and patches of {PATCH} mel bins and {seconds:g} s"

    def tokens(self, size: int) -> str:
        return f"{self.hinted_rows * self.columns(size):,} patches"

    def sentence(self, size: int) -> str:
        return (
            f"Spectrograms of {size} s: there is a hiss in one of three bands of frequencies, and at least {(size - ANYWHERE) / 2:.0f} s "
            "later a rising, a falling and a pulsed tone sound together, one in each band; the label is the kind of that in the band of "
            "the hiss, chance 33 %. Around them voices say digits. In the control the hiss is left out."
        )


TASKS = (Events,)

if __name__ == "__main__":
    run_study(TASKS)
