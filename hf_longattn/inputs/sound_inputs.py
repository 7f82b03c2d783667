"""Recordings as model inputs, with features computed once from the whole recording. A conversion extends the maximum
duration."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..conversion.check import Comparison
from ..conversion.plan import ConversionPlan, PositionWarning
from ..data.audio import Samples, read_audio
from ..errors import CheckpointError, InputError, OptionError, checkpoint_errors
from ..modeling.family.audio_spec import audio_seconds, check_mechanism_for_audio
from ..reports import FAILED, PASSED, SKIPPED, Check, Difference, equality
from .modality import AUTO, Example, InputSize, InputSizes
from .sized import (
    FEATURE_EXTRACTOR,
    FILE,
    SizedModality,
    UserFiles,
    affordable_size,
    check_sizes,
    has_processor,
    hidden_states,
    load_processor,
)
from .tokenizer import check_tokenizer, load_tokenizer

PROCESSED_SECONDS = 600.0
"""Maximum duration, in seconds, of the noise for comparing the result's feature extractor with the source's. Its
spectrogram takes seconds to compute."""
PADDED = 0.9
"""Length of the sound in the padding check, as a fraction of the full length. The check runs the sound alone, and
padded to the full length."""
SHOWN_SECONDS = 30
"""Maximum duration, in seconds, of the sound in a card's example, so that it runs quickly."""


def duration(seconds: float) -> str:
    """A duration as text, for example "15 seconds"."""
    return f"{seconds:,.5g} seconds"


class Sounds(UserFiles):
    """A user's recordings as model inputs. Without recordings, random samples or features."""

    part, file_type, noun, built_in = FEATURE_EXTRACTOR, "audio", "recordings", "seeded sounds"

    @cached_property
    def sampling_rate(self) -> int:
        """Samples per second of the feature extractor. Raises :class:`InputError` if the model reads samples at
        another rate."""
        rate = int(getattr(self.processor, "sampling_rate", self.spec.sampling_rate))
        if rate != self.spec.sampling_rate and self.spec.features is None:
            raise InputError(
                f"The feature extractor takes {rate:,} samples a second, but the model reads "
                f"{self.spec.sampling_rate:,}; correct sampling_rate in its {FILE}."
            )
        return rate

    @cached_property
    def recordings(self) -> list[Samples]:
        return [read_audio(file, self.sampling_rate, otherwise="give another file") for file in self.needed()]

    @cached_property
    def rows(self) -> list[Tensor]:
        """The model's input for each whole recording, ``(1, N, …)``."""
        return [self.spec.as_input(self.extracted(samples)) for samples in self.recordings]

    @property
    def longest(self) -> float:
        """Duration of the longest recording, in seconds."""
        return max(self.spec.seconds(row.shape[1]) for row in self.rows)

    def extracted(self, samples: Samples, *, as_called: bool = False) -> Tensor:
        """The model's input ``(1, N, …)`` for one sound ``(samples,)``, computed once from the whole sound.

        as_called: whether the feature extractor may cut and pad the sound, as Whisper's does by default.
        """
        how = {} if as_called else {"padding": "longest", "truncation": False}
        with checkpoint_errors("The feature extractor is damaged, or does not fit the sound"):
            values = self.required(samples, sampling_rate=self.sampling_rate, return_tensors="pt", **how)
        if self.spec.input not in values:
            raise CheckpointError(
                f"The feature extractor gives {', '.join(values)}, but the model reads {self.spec.input}; it belongs "
                "to another model."
            )
        return torch.as_tensor(values[self.spec.input]).float()

    def at(self, size: InputSize) -> dict[str, Any]:
        """The arguments of ``forward`` for one sound of this duration: the first recording, repeated, or random
        values."""
        if not self.files:
            return dict(self.spec.arguments(self.spec.seeded(self.config, size.value)))
        length = max(self.spec.length(size.value), self.spec.length_of(self.config, 1))
        samples = np.resize(self.recordings[0], round(length / self.spec.rate * self.sampling_rate))
        return dict(self.spec.arguments(self.extracted(samples)))

    def pieces(self, size: InputSize) -> list[dict[str, Any]]:
        """The arguments of ``forward`` for at most ``count`` excerpts: the first excerpt of every recording, then the
        second, and so on."""
        length = self.spec.length(size.value)
        length -= length % self.spec.step(self.config)
        starts = range(0, max(row.shape[1] for row in self.rows) - length + 1, max(1, length))
        cut = [
            row[:, start : start + length] for start in starts for row in self.rows if start + length <= row.shape[1]
        ]
        if not cut:
            raise InputError(
                f"The longest recording has {self.longest:,.1f} seconds, but {size.value:,.5g} are needed; give a "
                "longer one, or a shorter duration."
            )
        return [self.spec.arguments(self.spec.as_input(row)) for row in cut[: self.count]]


class SoundModality(SizedModality):
    """Recordings, as samples or as rows of features."""

    noun, nouns, units, timed = "sound", "sounds", "seconds", True
    settings = ("audio_seconds", "verify_audio")
    files, field = Sounds, "long_audio_seconds"
    trained_by = {
        "ForCTC": ("ctc", "--data", "YOUR_RECORDINGS"),
        "ForSequenceClassification": ("classify", "--data", "YOUR_RECORDINGS"),
        "ForConditionalGeneration": ("seq2seq", "--data", "YOUR_RECORDINGS"),
    }

    def size(self, config: Any, value: Any) -> InputSize:
        length = max(self.spec.length(value), self.spec.length_of(config, 1))
        return InputSize(value, self.spec.frames(config, length), duration(value), "audio_seconds")

    def sizes(self, config: Any) -> InputSizes:
        old, new = self.spec.durations(config)
        return self.between(config, old, new, self.spec.reads_longer)

    def check_mechanism(self, name: str, options: dict[str, Any]) -> None:
        check_mechanism_for_audio(name, options)

    def plan(self, source: Any, architecture: Any, request: Any) -> ConversionPlan:
        config, spec, name = architecture.source_config, self.spec, architecture.source_class
        old, new = spec.durations(config)
        if request.audio_seconds is not None:
            new = spec.converted_seconds(audio_seconds(request.audio_seconds, "--audio-seconds"))
        if new < old:
            raise InputError(
                f"The source was trained on sounds of up to {duration(old)} and conversion only extends it: "
                f"{duration(new)} are too few, give at least --audio-seconds {old:g}."
            )
        problem = spec.why_train(config, name) if new > old else ""
        if problem and not request.needs_training:
            raise InputError(
                f"A {name} of {duration(new)} is of no use untrained: {problem}; leave --audio-seconds out, and "
                "transcribe longer "
                f"recordings with transformers' pipeline(…, chunk_length_s={old:g}), or convert it with "
                "--needs-training and train it by longattn train seq2seq."
            )
        sizes = self.between(config, old, new, spec.reads_longer)
        attention = request.attention() if request.names_attention else self.family.config_class.default_attention()
        self.layers(architecture, attention, sizes)
        if request.positions != AUTO:
            raise OptionError(f"A {name} has no position table or rotary positions; leave --positions out.")
        advice = "train the result by longattn train seq2seq, on sounds of the new duration"
        warnings = [PositionWarning(problem, advice, "transcripts are of no use")] if problem else []
        extractor = load_processor(source.folder, self.files.part)
        changes = spec.extractor_fields(new) if extractor is not None and sizes.grows else {}
        return self.planned(source, architecture, sizes, attention, str(spec.positions), warnings, extractor, changes)

    def processor(self, plan: Any, folder: Path, inputs: Sounds) -> list[Check]:
        """Check that the written feature extractor neither cuts nor pads a sound of the new duration. Also checks the
        tokenizer."""
        name, new = "feature extractor", plan.inputs.new
        of_tokenizer = check_tokenizer(plan, folder, load_tokenizer(plan.source.folder))
        if inputs.processor is None:
            return [
                Check(name, SKIPPED, f"the source has no {name}, so make inputs of {new.words} as in its training"),
                *of_tokenizer,
            ]
        seconds = min(new.value, PROCESSED_SECONDS)
        noise = np.random.default_rng(0).standard_normal(inputs.sampling_rate).astype(np.float32)
        sound = np.resize(noise, round(seconds * inputs.sampling_rate))
        values = Sounds(self.spec, plan.config, folder).extracted(sound, as_called=True)
        same, heard = (
            torch.equal(values, inputs.extracted(sound)),
            self.spec.seconds(self.spec.as_input(values).shape[1]),
        )
        detail = (
            f"the {type(inputs.processor).__name__} of the result gives "
            f"{'the same input as' if same else 'another input than'} the source's, at {inputs.sampling_rate:,} "
            f"samples a second; a sound of {duration(seconds)} becomes an input of {duration(round(heard, 1))}"
        )
        if not same:
            detail += "; correct the fields of the feature extractor's file that cut or pad sounds"
        return [Check(name, PASSED if same else FAILED, detail, {"audio_seconds": heard}), *of_tokenizer]

    def check(self, comparison: Comparison) -> list[Check]:
        """Compare at both durations. Padding must change no frame."""
        return [*check_sizes(comparison), check_padding(comparison)]

    def example(self, folder: Path, config: Mapping[str, Any], length: int) -> Example:
        values, spec = self.config_of(config), self.spec
        seconds = min(spec.durations(values)[1], SHOWN_SECONDS)
        if not has_processor(folder):
            shape = (1, spec.length(seconds), *([] if spec.features is None else [spec.features(values)]))
            line = (
                f'inputs = {{"{spec.input}": torch.randn{shape}}}  # {seconds:g} s, normalised as the model was '
                "trained"
            )
            return Example("feature-extraction", None, line)
        lines = (
            "samples = "
            f"np.random.default_rng(0).standard_normal({round(seconds * spec.sampling_rate)}).astype(np.float32)  "
            f'# {seconds:g} s; or yours: soundfile.read("talk.wav")[0]\n'
            f'inputs = processor(samples, sampling_rate={spec.sampling_rate}, return_tensors="pt")'
        )
        return Example("feature-extraction", ("processor", "AutoFeatureExtractor"), lines, ("import numpy as np",))


def check_padding(comparison: Comparison) -> Check:
    name, spec, config, at = (
        "padding changes nothing",
        comparison.inputs.spec,
        comparison.plan.config,
        affordable_size(comparison.plan),
    )
    if why := spec.why_padding_changes(config):
        return Check(name, SKIPPED, f"does not apply: {why}, so that padding changes what the source computes as well")
    sound = comparison.inputs.at(at)[spec.input]
    length = round(PADDED * sound.shape[1])
    if spec.output_rows(config, length) < 1:
        return Check(name, SKIPPED, f"{at.words} are too short for padding")
    padded = sound.clone()
    padded[:, length:] = 0
    alone = hidden_states(comparison.result, spec.arguments(sound[:, :length], [length]))
    together = hidden_states(comparison.result, spec.arguments(padded, [length]))
    frames = {key: values[:, : alone[key].shape[1]] for key, values in together.items()}
    detail = f"a sound of {duration(spec.seconds(length))} alone, and padded to {at.words}: largest difference"
    return equality(name, detail, Difference.of(alone, frames), {})
