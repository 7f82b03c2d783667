"""Recordings as model input. Features are computed once, from the whole recording. A conversion extends the maximum duration."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..configuration import LongAttentionConfig
from ..conversion.check import Comparison
from ..conversion.check_sizes import STATES, check_sizes
from ..conversion.plan import ConversionPlan, plan_sized
from ..conversion.plan_positions import PositionWarning
from ..data.audio import RECORDING_FILES, Samples, read_audio
from ..data.english import PARAGRAPHS
from ..errors import CheckpointError, InputError, OptionError, checkpoint_errors
from ..modeling.family.audio_config import audio_seconds, check_mechanism_for_audio
from ..reports import FAILED, PASSED, SKIPPED, Check, Difference, equality
from .kind import TEXT_TASK, Example, InputKind
from .processors import FEATURE_EXTRACTOR, FILE, ProcessorFile, UserFiles, load_processor, values_with
from .running import run_model
from .sizes import AUTO, PARTS, SEARCH, SIZE, VERIFICATION, InputSize, InputSizes, Words, sizes_between
from .tokenizer import VerificationText, check_tokenizer, load_tokenizer

EXTRACTED_SECONDS = 2.0
"""Duration at which the written feature extractor is compared with the source's."""
PROCESSED_SECONDS = 600.0
"""Maximum duration for checking that the written feature extractor does not cut a sound. The spectrogram takes seconds to compute."""
WINDOW_SECONDS = 0.05
"""Maximum difference of the durations of a sound and its spectrogram, whose last window of 25 ms ends before the sound."""
COMPARED_SECONDS = 60.0
"""Maximum duration of sounds for comparing candidates, unless the checkpoint was trained with longer ones."""
PADDED = 0.9
"""Fraction of a sound that the padding check runs, alone and padded to the whole length."""
MAX_IDS = 2**31
"""Vocabulary size for :class:`VerificationText` that accepts every tokenizer. The model reads no token ids."""
SHOWN_SECONDS = 30
"""Maximum duration, in seconds, of the sound in a card's example, so that it runs quickly."""
TRAINED_BY = {
    "ForCTC": ("ctc", "--data", "YOUR_RECORDINGS"),
    "ForSequenceClassification": ("classify", "--audio", "--data", "YOUR_RECORDINGS"),
    "ForConditionalGeneration": ("seq2seq", "--data", "YOUR_RECORDINGS"),
}
"""Ending of a class's name -> arguments of ``longattn train`` for its models."""


def duration(seconds: float) -> str:
    """A duration as text, for example "15 seconds"."""
    return f"{seconds:,.5g} seconds"


class Sounds(UserFiles):
    """A user's recordings as inputs of a model; without any, random samples or features."""

    processor_kind, reads, built_in = FEATURE_EXTRACTOR, "sound", "seeded sounds"
    files_in = staticmethod(RECORDING_FILES.files)
    wanted = (
        ", by which mechanisms are chosen; give a recording or a folder of recordings, to `longattn search` in place of the text, to "
        "--mechanism auto as --search-audio, in Python as a Path."
    )

    @cached_property
    def sampling_rate(self) -> int:
        """Samples per second of the feature extractor.

        Raises:
            InputError: the model reads samples at another rate.
        """
        rate = int(getattr(self.processor, "sampling_rate", self.rule.sampling_rate))
        if rate != self.rule.sampling_rate and self.rule.features is None:
            raise InputError(
                f"The feature extractor takes {rate:,} samples a second, but the model reads {self.rule.sampling_rate:,}; correct "
                f"sampling_rate in its {FILE}."
            )
        return rate

    @cached_property
    def recordings(self) -> list[Samples]:
        """The samples of each recording."""
        how: dict[str, Any] = {"resample": True, "mono": True, "otherwise": "give another file"}
        return [read_audio(file, self.sampling_rate, **how) for file in self.files]

    @cached_property
    def rows(self) -> list[Tensor]:
        """The model's input for each whole recording, ``(1, N, …)``."""
        if not self.files:
            raise OptionError(f"{self.model!r} reads {self.reads}{self.wanted}")
        return [self.rule.as_input(self.extracted(samples)) for samples in self.recordings]

    @property
    def longest(self) -> float:
        """Duration of the longest recording, in seconds."""
        return max(self.rule.seconds(row.shape[1]) for row in self.rows)

    def extracted(self, samples: Samples, *, as_called: bool = False) -> Tensor:
        """The model's input ``(1, N, …)`` for one sound ``(samples,)``, computed once from the whole sound.

        Args:
            as_called: whether the feature extractor may cut and pad the sound, as Whisper's does by default.

        Raises:
            CheckpointError: the feature extractor is damaged, or belongs to another model.
        """
        how = {} if as_called else {"padding": "longest", "truncation": False}
        with checkpoint_errors("The feature extractor is damaged, or does not fit the sound"):
            values = self.required(samples, sampling_rate=self.sampling_rate, return_tensors="pt", **how)
        if self.rule.input not in values:
            raise CheckpointError(
                f"The feature extractor gives {', '.join(values)}, but the model reads {self.rule.input}; it belongs to another model."
            )
        return torch.as_tensor(values[self.rule.input]).float()

    def at(self, size: InputSize) -> dict[str, Any]:
        """The arguments of ``forward`` for one sound of this duration: the first recording, repeated, or random values."""
        if not self.files:
            return dict(self.rule.arguments(self.rule.seeded(self.config, size.value)))
        length = max(self.rule.length(size.value), self.rule.length_of(self.config, 1))
        samples = np.resize(self.recordings[0], round(length / self.rule.rate * self.sampling_rate))
        return dict(self.rule.arguments(self.extracted(samples)))

    def pieces(self, size: InputSize) -> list[dict[str, Any]]:
        """The arguments of ``forward`` for excerpts, at most ``count``: the first of every recording, then the second of every one."""
        length = self.rule.length(size.value)
        length -= length % self.rule.step(self.config)
        starts = range(0, max(row.shape[1] for row in self.rows) - length + 1, max(1, length))
        cut = [row[:, start : start + length] for start in starts for row in self.rows if start + length <= row.shape[1]]
        if not cut:
            raise InputError(
                f"The longest recording has {self.longest:,.1f} seconds, but {size.value:,.5g} are needed; give a longer one, or a shorter "
                "duration."
            )
        return [self.rule.arguments(self.rule.as_input(row)) for row in cut[: self.count]]

    def describe(self) -> str:
        """Description of the inputs for a report."""
        return f"the recording {self.name}" if self.files else self.built_in


class SoundKind(InputKind):
    """Recordings, as samples or as rows of features."""

    words = Words(
        noun="sound",
        nouns="sounds",
        reads="reads sound",
        units="seconds",
        size="duration",
        material="recordings",
        settings=("audio_seconds", "search_audio", "verify_audio"),
        instead={
            SIZE: "give its duration as --audio-seconds 600",
            SEARCH: "give recordings as --search-audio FILE",
            VERIFICATION: "give a recording as --verify-audio FILE",
            PARTS: "give --mechanism",
        },
        how_to_diagnose="give it a recording or a folder: longattn inspect MODEL talk.wav.",
        timed=True,
        check=check_mechanism_for_audio,
    )

    def sizes(self, config: Any) -> InputSizes:
        return self.sizes_of(config, *self.rule.durations(config))

    def sizes_of(self, config: Any, old: float, new: float) -> InputSizes:
        """The sizes of a source of ``old`` seconds and a result of ``new`` seconds."""
        read = new if self.rule.base_reads(config, new) else old
        return sizes_between(self.words, partial(self._size, config), old, new, min(read, max(old, COMPARED_SECONDS)), read)

    def _size(self, config: Any, seconds: float) -> InputSize:
        length = max(self.rule.length(seconds), self.rule.length_of(config, 1))
        return InputSize(
            value=seconds,
            tokens=self.rule.frames(config, length),
            words=duration(seconds),
            typed=f"{seconds:g}s",
            heading=f"{seconds:,g} s",
            name="audio_seconds",
            cost_name="seconds",
            unit="frames",
        )

    def plan(self, source: Any, architecture: Any, request: Any) -> ConversionPlan:
        """As in :class:`InputKind`. Also raises :class:`InputError` for a duration at which an untrained result is of no use."""
        config, rule, name = architecture.source_config, self.rule, architecture.source_class
        if request.positions != AUTO:
            raise OptionError(f"A {name} has no position table or rotary positions; leave --positions out.")
        old, read = rule.durations(config)
        new = read if request.audio_seconds is None else rule.converted_seconds(audio_seconds(request.audio_seconds, "--audio-seconds"))
        if new < old:
            raise InputError(
                f"The source was trained on sounds of up to {duration(old)} and conversion only extends it: {duration(new)} are too few, "
                f"give at least --audio-seconds {old:g}."
            )
        sizes = self.sizes_of(config, old, new)
        problem = rule.why_train(config, name) if sizes.grows else ""
        advice = "train the result by longattn train seq2seq, on sounds of the new duration"
        if problem and not request.needs_training:
            raise InputError(
                f"A {name} of {sizes.new.words} is of no use untrained: {problem}; leave --audio-seconds out, and transcribe longer "
                f"recordings with transformers' pipeline(…, chunk_length_s={old:g}), or convert it with --needs-training and train it by "
                "longattn train seq2seq."
            )
        kind: Any = self.family.config_class
        attention: LongAttentionConfig = request.attention() if request.names_attention else kind.default_attention()
        attention.check_layers(config.num_hidden_layers)
        for layer in range(config.num_hidden_layers):
            check_mechanism_for_audio(*attention.for_layer(layer))
        files, place = {}, ProcessorFile.find(source.folder, FEATURE_EXTRACTOR)
        if sizes.grows and place is not None and (changed := rule.extractor_fields(new)):
            files = place.with_values(values_with(load_processor(source.folder, FEATURE_EXTRACTOR), changed))
        return plan_sized(
            source,
            architecture,
            request,
            sizes,
            attention,
            positions=str(rule.positions),
            fields={"long_audio_seconds": new} if sizes.grows else {},
            warnings=[PositionWarning(problem, advice, "transcripts are of no use")] if problem else [],
            files=files,
            trained_by=TRAINED_BY,
        )

    def inputs(self, config: Any, folder: Path, text: tuple[str, str] | None = None, files: Path | None = None, **settings: Any) -> Sounds:
        return Sounds(self.rule, config, folder, files, **settings)

    def processor(self, plan: Any, folder: Path, inputs: Sounds) -> list[Check]:
        """Check that the written feature extractor and tokenizer do what the source's do."""
        transcript = VerificationText(PARAGRAPHS, "a transcript", load_tokenizer(plan.source.folder), MAX_IDS)
        tokenizer, name, rule, new = check_tokenizer(plan, folder, transcript), "feature extractor", self.rule, plan.inputs.new
        if inputs.processor is None:
            detail = f"the source has no feature extractor, so make inputs of {new.words} as it was trained"
            return [Check(name, SKIPPED, detail), *tokenizer]
        try:
            written = Sounds(rule, plan.config, folder)
            samples = np.random.default_rng(0).standard_normal(int(EXTRACTED_SECONDS * inputs.sampling_rate)).astype(np.float32)
            same = torch.equal(written.extracted(samples), inputs.extracted(samples))
            duration_in = min(new.value, PROCESSED_SECONDS)
            sound = np.resize(samples, round(duration_in * written.sampling_rate))
            duration_out = rule.seconds(rule.as_input(written.extracted(sound, as_called=True)).shape[1])
        except CheckpointError as error:
            return [Check(name, FAILED, str(error).rstrip(".")), *tokenizer]
        detail = (
            f"the {type(inputs.processor).__name__} of the result gives {'the same input as' if same else 'another input than'} the "
            f"source's, at {inputs.sampling_rate:,} samples a second; a sound of {duration(duration_in)} becomes an input of "
            f"{duration(round(duration_out, 1))}"
        )
        if not (good := abs(duration_out - duration_in) <= WINDOW_SECONDS):
            detail += "; correct the fields of the feature extractor's file that cut or pad sounds"
        return [Check(name, PASSED if same and good else FAILED, detail, {"audio_seconds": duration_out}), *tokenizer]

    def check(self, comparison: Comparison) -> list[Check]:
        """Compare at both durations. Padding must change no frame."""
        plan = comparison.plan
        reads_new = self.rule.base_reads(plan.architecture.source_config, plan.inputs.new.value)
        checks, _, new = check_sizes(comparison, reads_new)
        return [*checks, check_padding(plan.config, comparison.long, comparison.inputs, new)]

    def example(self, folder: Path, config: Mapping[str, Any], length: int) -> Example:
        values, rule = self.config_of(config), self.rule
        seconds = min(rule.durations(values)[1], SHOWN_SECONDS)
        if ProcessorFile.find(folder, FEATURE_EXTRACTOR) is None:
            shape = (1, rule.length(seconds), *([] if rule.features is None else [rule.features(values)]))
            line = f'inputs = {{"{rule.input}": torch.randn{shape}}}  # {seconds:g} s, normalised as the model was trained'
            return Example(TEXT_TASK, None, line)
        lines = (
            f"samples = np.random.default_rng(0).standard_normal({round(seconds * rule.sampling_rate)}).astype(np.float32)  "
            f'# {seconds:g} s; or yours: soundfile.read("talk.wav")[0]\n'
            f'inputs = processor(samples, sampling_rate={rule.sampling_rate}, return_tensors="pt")'
        )
        return Example(TEXT_TASK, ("processor", "AutoFeatureExtractor"), lines, ("import numpy as np",))


def check_padding(config: Any, base: Any, inputs: Sounds, at: InputSize) -> Check:
    """Check that a sound's frames are the same with and without padding after it."""
    name, rule = "padding changes nothing", inputs.rule
    if why := rule.why_padding_changes(config):
        return Check(name, SKIPPED, f"does not apply: {why}, so that padding changes what the source computes as well")
    sound = inputs.at(at)[rule.input]
    length = round(PADDED * sound.shape[1])
    if rule.output_rows(config, length) < 1:
        return Check(name, SKIPPED, f"{at.words} are too short for padding")
    padded = sound.clone()
    padded[:, length:] = 0
    alone = run_model(base, rule.arguments(sound[:, :length], [length]))[STATES]
    together = run_model(base, rule.arguments(padded, [length]))[STATES][:, : alone.shape[1]]
    detail = f"a sound of {duration(rule.seconds(length))} alone, and padded to {at.words}: largest difference"
    return equality(name, detail, Difference.of({"frames": alone}, {"frames": together}), {})
