"""Conversions of models that read sound, to a longer maximum duration.

The feature extractor computes the features of a recording once, from the whole recording.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.audio import Samples, read_audio
from ..errors import CheckpointError, InputError, OptionError, checkpoint_errors
from ..modeling.family.audio_spec import audio_seconds, duration
from ..modeling.family.input_spec import AUTO, InputSize
from ..reports import FAILED, PASSED, SKIPPED, Check, Difference, equality
from .architecture import Architecture
from .check import Comparison
from .check_texts import check_tokenizer
from .modality import Modality
from .plan import ConversionPlan, PositionWarning
from .settings import ConversionConfig
from .sized import (
    FEATURE_EXTRACTOR,
    FILE,
    UserFiles,
    affordable_size,
    changed_file,
    check_sizes,
    hidden_states,
    load_processor,
    plan_sized,
    sized_layers,
    without_processor,
)
from .source import Source
from .tokenizer import load_tokenizer

TASKS = {
    "ForCTC": ("ctc", "--data", "YOUR_RECORDINGS"),
    "ForSequenceClassification": ("classify", "--data", "YOUR_RECORDINGS"),
    "ForConditionalGeneration": ("seq2seq", "--data", "YOUR_RECORDINGS"),
}
"""Ending of a class's name -> the words after ``longattn train`` that train it."""
PROCESSED_SECONDS = 600.0
"""Maximum duration, in seconds, of the noise for comparing the feature extractors of result and source. The
spectrogram of ten minutes takes seconds to compute."""
PADDED = 0.9
"""Length of the sound in the padding check, as a share of the full length. The sound runs alone, and padded to the
full length."""


class Sounds(UserFiles):
    """The recordings of a user as inputs of a model. Without recordings, the samples or features are random."""

    part, file_type, noun, built_in = FEATURE_EXTRACTOR, "audio", "recordings", "seeded sounds"

    @cached_property
    def sampling_rate(self) -> int:
        """The samples per second that the feature extractor takes.

        Raises:
            InputError: the model reads samples, and at another rate.
        """
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

    def extracted(self, samples: Samples, *, as_called: bool = False) -> Tensor:
        """The model's input ``(1, N, …)`` for one sound ``(samples,)``.

        as_called: use the defaults of the feature extractor, which may cut and pad the sound, like Whisper's. By
            default, the whole sound is processed.
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
        """The arguments of ``forward`` for one sound of this duration: the first recording, repeated if it is shorter,
        or random values."""
        if not self.files:
            return dict(self.spec.arguments(self.spec.seeded(self.config, size.value)))
        length = max(self.spec.length(size.value), self.spec.length_of(self.config, 1))
        samples = np.resize(self.recordings[0], round(length / self.spec.rate * self.sampling_rate))
        return dict(self.spec.arguments(self.extracted(samples)))

    def pieces(self, size: InputSize) -> list[dict[str, Any]]:
        """The arguments of ``forward`` for at most ``count`` excerpts of this duration.

        The first excerpt of every recording comes first, then the second excerpt of every recording, and so on.
        """
        length = self.spec.length(size.value)
        length -= length % self.spec.step(self.config)
        longest = max(row.shape[1] for row in self.rows)
        starts = range(0, longest - length + 1, max(1, length))
        excerpts = [
            row[:, start : start + length] for start in starts for row in self.rows if start + length <= row.shape[1]
        ]
        if not excerpts:
            raise InputError(
                f"The longest recording has {self.spec.seconds(longest):,.1f} seconds, but {size.value:,.5g} are "
                "needed; give a longer one, or a shorter duration."
            )
        return [self.spec.arguments(self.spec.as_input(excerpt)) for excerpt in excerpts[: self.count]]


def plan_sounds(source: Source, architecture: Architecture, request: ConversionConfig) -> ConversionPlan:
    """Plan the conversion of a model that reads sound to a longer duration."""
    family, config, name = architecture.family, architecture.source_config, architecture.source_class
    spec = family.spec
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
            f"transcribe longer recordings with transformers' pipeline(…, chunk_length_s={old:g}), or convert it with "
            "--needs-training and train it by longattn train seq2seq."
        )
    sizes = spec.between(config, old, new, spec.reads_longer)
    if request.names_attention:
        attention = request.attention()
    else:
        attention = architecture.long_config(None).long_attention
    sized_layers(architecture, attention, sizes)  # raises an error if a mechanism cannot run
    if request.positions != AUTO:
        raise OptionError(f"A {name} has no position table or rotary positions; leave --positions out.")
    advice = "train the result by longattn train seq2seq, on sounds of the new duration"
    warnings = [PositionWarning(problem, advice, "transcripts are of no use")] if problem else []
    extractor = load_processor(source.folder, FEATURE_EXTRACTOR)
    files = {}
    changes = spec.extractor_fields(new) if sizes.grows else {}
    if extractor is not None and changes:
        files = changed_file(source.folder, FEATURE_EXTRACTOR, extractor, changes)
    return plan_sized(source, architecture, sizes, attention, str(spec.positions), warnings, files, TASKS)


def check_extractor(plan: ConversionPlan, folder: Path, inputs: Sounds) -> list[Check]:
    """Check the written feature extractor, and the tokenizer.

    By default, the feature extractor must make the same input from a sound of the new duration as the source's makes
    without cutting or padding.
    """
    tokenizer_checks = check_tokenizer(plan, folder, load_tokenizer(plan.source.folder))
    if inputs.processor is None:
        return [without_processor(FEATURE_EXTRACTOR, plan), *tokenizer_checks]
    seconds = min(plan.inputs.new.value, PROCESSED_SECONDS)
    noise = np.random.default_rng(0).standard_normal(inputs.sampling_rate).astype(np.float32)
    sound = np.resize(noise, round(seconds * inputs.sampling_rate))
    values = Sounds(inputs.spec, plan.config, folder).extracted(sound, as_called=True)
    input_seconds = inputs.spec.seconds(inputs.spec.as_input(values).shape[1])
    status, relation, advice = PASSED, "the same input as", ""
    if not torch.equal(values, inputs.extracted(sound)):
        status, relation = FAILED, "another input than"
        advice = "; correct the fields of the feature extractor's file that cut or pad sounds"
    detail = (
        f"the {type(inputs.processor).__name__} of the result gives {relation} the source's, at "
        f"{inputs.sampling_rate:,} samples a second; a sound of {duration(seconds)} becomes an input of "
        f"{duration(round(input_seconds, 1))}{advice}"
    )
    return [Check("feature extractor", status, detail, {"audio_seconds": input_seconds}), *tokenizer_checks]


def check_sounds(comparison: Comparison) -> list[Check]:
    """Compare source and result at the old and the new duration, and check that padding changes nothing."""
    return [*check_sizes(comparison), check_padding(comparison)]


def check_padding(comparison: Comparison) -> Check:
    """Check that padding after a sound changes no hidden state of its frames."""
    name = "padding changes nothing"
    size = affordable_size(comparison.plan)
    spec, config = comparison.inputs.spec, comparison.plan.config
    why = spec.why_padding_changes(config)
    if why:
        return Check(name, SKIPPED, f"does not apply: {why}, so that padding changes what the source computes as well")
    sound = comparison.inputs.at(size)[spec.input]
    length = round(PADDED * sound.shape[1])
    if spec.output_rows(config, length) < 1:
        return Check(name, SKIPPED, f"{size.words} are too short for padding")
    padded = sound.clone()
    padded[:, length:] = 0
    expected = hidden_states(comparison.result, spec.arguments(sound[:, :length], [length]))
    states = hidden_states(comparison.result, spec.arguments(padded, [length]))
    without_padding = {key: values[:, : expected[key].shape[1]] for key, values in states.items()}
    detail = f"a sound of {duration(spec.seconds(length))} alone, and padded to {size.words}: largest difference"
    return equality(name, detail, Difference.of(expected, without_padding), {})


SOUNDS = Modality(
    ("audio_seconds", "verify_audio"),
    plan_sounds,
    lambda family, config, folder, text, recording: Sounds(family.spec, config, folder, recording),
    check_extractor,
    check_sounds,
    Sounds,
)
