"""Recordings whose label needs two places that are minutes apart: a small W2v-BERT that heard seconds, converted to minutes.

Digits are said by changing voices. ``--task keywords``: two of four keywords are among them, at least half the recording apart, and the
label is the one that comes first. ``--task voices``: a phrase is said near the start and near the end, and the label is whether the same
voice says it. In the control recordings the keywords, or the second phrase, are left out: no model can be better than chance.

Frames are 80 ms, of four rows of log-mel features; voices that are measured were not heard in training.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import Wav2Vec2BertConfig, Wav2Vec2BertForSequenceClassification

from hf_longattn.data.audio import Samples

from .far_running import FULL, Stage, run_study
from .far_sounds import MARGIN, ROWS_PER_SECOND, FixedScale, Placed, Sound, SoundTask, babble, in_chunks, whole, with_hints, with_sounds
from .far_task import Shown, System, converted, plain
from .speech_synthesis import ACCENTS, HELD_OUT, RATE, TRAINED, VARIANTS, Voice, say

FEATURES, STACKED = 40, 4
"""Log-mel features of a row, and rows of a frame."""
FRAMES_PER_SECOND = ROWS_PER_SECOND / STACKED
SCALE = FixedScale(features=64, rows_per_second=ROWS_PER_SECOND, window=512)
"""The features of voices: 16 Hz between frequencies, which tell pitches apart."""
REACH = 32
"""Frames that a window sees on each side, 2.6 s."""
APART = 64
"""Frames from one global frame to the next, 5.1 s."""


class HintedClassifier(Wav2Vec2BertForSequenceClassification):
    """A small model with a head for the labels of frames, by which it starts to learn; it is not saved."""

    _keys_to_ignore_on_save = ["hints.weight", "hints.bias"]

    def __init__(self, config: Wav2Vec2BertConfig, classes: int) -> None:
        super().__init__(config)
        self.hints = nn.Linear(config.hidden_size, classes)

    def both(self, inputs: Tensor) -> Tensor:
        """``(B, 1 + frames, classes)``: the logits of recordings and of their frames."""
        states = self.wav2vec2_bert(inputs).last_hidden_state
        return with_hints(self.classifier(self.projector(states).mean(1)), self.hints(states))


class SpeechTask(SoundTask):
    """Recordings that a small W2v-BERT learns."""

    features = FEATURES
    defaults = {
        "systems": ["chunks", "chunks-max", "window", "globals", "last-full", FULL],
        "stages": [Stage(40, 64, 8), Stage(240, 48, 2)], "short_size": 8, "layers": 3, "halved": 0.0, "short_batch": 32,
        "short_minutes": 1.2, "test_examples": 60, "other_examples": 12, "memory_batch": 1,
    }  # fmt: skip

    def inputs(self, features: Tensor) -> Tensor:
        return features.unflatten(1, (-1, STACKED)).flatten(2)

    def columns(self, seconds: int) -> int:
        return seconds * ROWS_PER_SECOND // STACKED

    def small_model(self, args: argparse.Namespace, seed: int) -> HintedClassifier:
        config = Wav2Vec2BertConfig(
            hidden_size=args.width, num_hidden_layers=args.layers, num_attention_heads=max(1, args.width // 32),
            intermediate_size=2 * args.width, feature_projection_input_dim=self.features * STACKED, classifier_proj_size=args.width,
            conv_depthwise_kernel_size=9, layerdrop=0.0, final_dropout=0.0, conformer_conv_dropout=0.0, apply_spec_augment=False,
            num_labels=self.classes,
        )  # fmt: skip
        return HintedClassifier(config, self.hint_classes)

    def systems(self, args: argparse.Namespace) -> dict[str, System]:
        window = {"mechanism": "window", "left": REACH, "right": REACH}
        places = list(range(0, self.columns(args.stages[-1].size), APART))
        globals_ = {"mechanism": "longformer", "left": REACH, "right": REACH, "global_tokens": places}
        full = {"mechanism": "full"}
        last, before_last = args.layers - 1, args.layers - 2
        short, seconds, rows = plain(Wav2Vec2BertForSequenceClassification), args.short_size, self.columns(args.short_size)

        def with_attention(attention: Mapping[str, Any]) -> Callable[[Path, int], nn.Module]:
            return converted("wav2vec2-bert", Wav2Vec2BertForSequenceClassification, attention, lambda size: {"long_audio_seconds": size})

        return {
            "chunks": System(f"chunks of {seconds} s, mean of their logits", short, in_chunks(rows, "mean")),
            "chunks-max": System(f"chunks of {seconds} s, maximum of their logits", short, in_chunks(rows, "max")),
            "window": System("window in every layer", with_attention(window), whole),
            "globals": System(f"longformer, a global frame every {APART / FRAMES_PER_SECOND:.0f} s", with_attention(globals_), whole),
            "last-full": System("window, the last layer full", with_attention({**window, "layers": {last: full}}), whole),
            "two-full": System(
                "window, the last two layers full", with_attention({**window, "layers": {before_last: full, last: full}}), whole
            ),
            FULL: System("full attention", with_attention(full), whole),
        }

    def about_model(self, settings: Mapping[str, Any]) -> str:
        return f"A W2v-BERT of {settings['layers']} layers, width {settings['width']} and frames of {1000 / FRAMES_PER_SECOND:.0f} ms"

    def tokens(self, size: int) -> str:
        return f"{self.columns(size):,} frames"


class Keywords(SpeechTask):
    """The first of two keywords; easier recordings have one."""

    name = "keywords"
    words = ("banana", "hotel", "mountain", "yellow")
    classes = len(words)
    hint_classes = len(words) + 1
    easy_share = 0.5

    def recording(self, shown: Shown, random: np.random.Generator) -> tuple[Samples, int, Sequence[Placed]]:
        voices = HELD_OUT if shown.held_out else TRAINED
        labels = [int(number) for number in random.permutation(self.classes)[:2]]
        words = [say(self.words[label], voices[int(random.integers(len(voices)))]) for label in labels]
        starts = far_starts(shown.size, [len(word) / RATE for word in words], random)
        placed = [(Sound(word, start), (label,)) for word, start, label in zip(words, starts, labels, strict=True)]
        if shown.control:
            placed = []
        elif random.random() < shown.easy:
            placed = [placed[int(random.integers(2))]]
        samples = with_sounds(babble(random, voices, shown.size), [sound for sound, _ in placed], random)
        return samples, placed[0][1][0] if placed else labels[0], placed

    def sentence(self, size: int) -> str:
        return (
            f"Recordings of {size} s in which changing voices say digits and two of four keywords, at least {size // 2} s apart; the label "
            "is the keyword that comes first, chance 25 %, and 50 % for who knows both but not their order. In the control the keywords "
            "are left out."
        )


def far_starts(seconds: float, durations: Sequence[float], random: np.random.Generator) -> tuple[float, float]:
    """Where two sounds start, at least half the recording apart, with the margin at its ends."""
    room = seconds - durations[1] - 2 * MARGIN
    apart = random.uniform(seconds / 2 + durations[0], room)
    first = MARGIN + random.uniform(0, room - apart)
    return first, first + apart


class Voices(SpeechTask):
    """Whether a phrase is said by one speaker or by two, near the start and near the end.

    A small model starts to learn from labels of frames: who says the phrase first, and when it is said again, both speakers.
    """

    name = "voices"
    phrase = "this is my voice"
    classes = 2
    features = SCALE.features
    speakers = tuple(zip(VARIANTS, (35, 5, 20, 50, 65, 80, 95), strict=True))
    """The variant of espeak-ng and the pitch of each."""
    speeds, pitches = range(130, 185, 5), (-3, 0, 3)
    """Words a minute, and by how much a speaker's pitch is another one each time."""
    held_out_accents = (2, 4)
    hint_classes = len(speakers) + len(speakers) ** 2 + 1
    ends = 1 / 8
    """Share of the recording at each end in which the phrase starts, or stops."""

    def recording(self, shown: Shown, random: np.random.Generator) -> tuple[Samples, int, Sequence[Placed]]:
        accents = [accent for number, accent in enumerate(ACCENTS) if (number in self.held_out_accents) == shown.held_out]
        accent, is_same = accents[int(random.integers(len(accents)))], int(random.integers(2))
        first, second = (int(number) for number in random.permutation(len(self.speakers))[:2])
        second = first if is_same else second
        phrases = [self.said(accent, speaker, random) for speaker in (first, second)]
        room = max(shown.size * self.ends - MARGIN, 0.0)
        from_start, from_end = (MARGIN + random.uniform(0, room) for _ in range(2))
        starts = (from_start, shown.size - from_end - len(phrases[1]) / RATE)
        labels = (first, len(self.speakers) * (1 + first) + second)
        placed = [(Sound(phrase, start), (label,)) for phrase, start, label in zip(phrases, starts, labels, strict=True)]
        if shown.control:
            placed.pop()
        return with_sounds(babble(random, TRAINED, shown.size), [sound for sound, _ in placed], random), is_same, placed

    def said(self, accent: str, speaker: int, random: np.random.Generator) -> Samples:
        """The phrase by a speaker at any speed, a little higher or lower."""
        variant, pitch = self.speakers[speaker]
        return say(self.phrase, Voice(f"{accent}{variant}", int(random.choice(self.speeds)), pitch + int(random.choice(self.pitches))))

    def spectrograms(self, recordings: Sequence[Samples]) -> Tensor:
        return SCALE.normalised(recordings)

    def sentence(self, size: int) -> str:
        return (
            f'Recordings of {size} s in which "{self.phrase}" is said near the start and near the end by any of {len(self.speakers)} '
            f"speakers, at any of {len(self.speeds)} speeds and a little higher or lower each time; the label is whether the speaker is "
            "the same, chance 50 %. Between them voices say digits. Recordings that are measured have accents that were not heard in "
            "training. In the control the second phrase is left out."
        )


TASKS = (Keywords, Voices)

if __name__ == "__main__":
    run_study(TASKS)
