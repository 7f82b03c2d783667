"""Recordings as model input. Features are computed once, from the whole recording. A conversion extends the maximum duration."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..configuration import LongAttentionConfig
from ..data.audio import RECORDING_FILES, Samples, read_audio
from ..data.english import PARAGRAPHS
from ..errors import AudioError, CheckpointError, LengthError, PositionError, checkpoint_errors
from ..files import FEATURE_EXTRACTOR, FILE, ProcessorFile
from ..mechanisms import Mechanism, list_mechanisms
from ..mechanisms.common.registry import prototype
from ..modeling.family.audio_config import audio_seconds, check_mechanism_for_audio
from ..modeling.family.audio_rule import AudioRule
from ..reports import FAILED, MEASURED, PASSED, SKIPPED, Check, Difference, equality
from .common.base import (
    AUTO,
    SEARCH,
    SIZE,
    VERIFICATION,
    InputPlan,
    InputSize,
    InputSizes,
    Layers,
    PositionWarning,
    register_kind,
)
from .common.examples import TEXT_TASK, Example
from .common.processors import load_processor, values_with
from .common.running import run_model
from .common.sized import FurtherChecks, SizedKind
from .common.user_files import UserInputs
from .text import VerificationText, check_tokenizer, load_tokenizer

COUNTED_SECONDS = 10.0
"""Duration of the meta-device input on which the operations of convolutions are counted."""
REPEATED_SECONDS = 30.0
"""Duration of the sound that longer inputs repeat, if only their length matters."""
EXTRACTED_SECONDS = 2.0
"""Duration at which the written feature extractor is compared with the source's."""
PROCESSED_SECONDS = 600.0
"""Maximum duration for checking that the written feature extractor does not cut a sound. The spectrogram takes seconds to compute."""
WINDOW_SECONDS = 0.05
"""Maximum difference of the durations of a sound and its spectrogram, whose last window of 25 ms ends before the sound."""
COMPARED_SECONDS = 60.0
"""Maximum duration of sounds for comparing candidates, unless the checkpoint was trained with longer ones."""
MAX_IDS = 2**31
"""Vocabulary size for :class:`VerificationText` that accepts every tokenizer. The model reads no token ids."""
PADDED = 0.9
"""Fraction of a sound that the padding check runs, alone and padded to the whole length."""


def duration(seconds: float) -> str:
    """A duration as text, for example "15 seconds"."""
    return f"{seconds:,.5g} seconds"


SHOWN_SECONDS = 30
"""Maximum duration, in seconds, of the sound in a card's example, so that it runs quickly."""


class UserSounds(UserInputs):
    """Excerpts of the user's recordings. They are cut from the features of the whole recording."""

    unit, processor_kind = "stretch", FEATURE_EXTRACTOR
    files_in = staticmethod(RECORDING_FILES.files)
    reads = "sound"
    wanted = (
        "by which mechanisms are chosen; give a recording or a folder of recordings, to `longattn search` in place of the text, to "
        "--mechanism auto as --search-audio, in Python as a Path."
    )

    @cached_property
    def rows(self) -> list[Tensor]:
        """The model's input for each whole recording, ``(1, N, …)``."""
        reader = VerificationSound(self.rule, self.config, self.processor)
        how: dict[str, Any] = {"resample": True, "mono": True, "otherwise": "give another file"}
        read = [read_audio(file, reader.sampling_rate, **how) for file in self.files]
        return [self.rule.as_input(reader.extracted(samples)) for samples in read]

    @property
    def longest(self) -> float:
        """Duration of the longest recording, in seconds."""
        return max(self.rule.seconds(row.shape[1]) for row in self.rows)

    def values(self, size: float) -> list[Tensor]:
        """Excerpts of ``size`` seconds, at most ``count``. The first of every recording, then the second of every recording, and so on."""
        length = self.rule.length(size)
        length -= length % self.rule.step(self.config)
        starts = range(0, max(row.shape[1] for row in self.rows) - length + 1, max(1, length))
        cut = [row[:, start : start + length] for start in starts for row in self.rows if start + length <= row.shape[1]]
        if not cut:
            raise LengthError(
                f"The longest recording has {self.longest:,.1f} seconds, but {size:,.5g} are needed; give a longer one, or a shorter "
                "duration."
            )
        return [self.rule.as_input(row) for row in cut[: self.count]]

    def too_few(self, pieces: int, wanted: int) -> str:
        return f"The recordings are enough for {pieces} of {wanted} stretches; more or longer ones give a surer choice."


@register_kind
class SoundKind(SizedKind):
    """Recordings, as samples or as rows of features."""

    settings = ("audio_seconds", "search_audio", "verify_audio")
    instead = {
        SIZE: "give its duration as --audio-seconds 600",
        SEARCH: "give recordings as --search-audio FILE",
        VERIFICATION: "give a recording as --verify-audio FILE",
    }
    noun = nouns = "sound"
    units, material, size_noun, smaller = "seconds", "recordings", "duration", "shorter"
    timed = True
    diagnosed_with = "a recording or a folder: longattn inspect MODEL talk.wav"
    user_inputs = UserSounds
    classified = {
        "ForCTC": ("ctc", "--data", "YOUR_RECORDINGS"),
        "ForSequenceClassification": ("classify", "--audio", "--data", "YOUR_RECORDINGS"),
        "ForConditionalGeneration": ("seq2seq", "--audio", "--data", "YOUR_RECORDINGS"),
    }

    def introduce(self, plan: Any) -> str:
        return "sounds of any duration"

    def longest_words(self, size: InputSize) -> str:
        return f"sounds of {size.describe()}"

    def sizes(self, config: Any) -> InputSizes:
        return self.sizes_between(config, *self.rule.durations(config))

    def size(self, config: Any, value: float) -> InputSize:
        """The size of a sound of ``value`` seconds. It has at least one frame."""
        length = max(self.rule.length(value), self.rule.length_of(config, 1))
        return InputSize(
            value=value,
            tokens=self.rule.frames(config, length),
            words=duration(value),
            typed=f"{value:g}s",
            heading=f"{value:,g} s",
            name="audio_seconds",
            cost_name="seconds",
            unit="frames",
        )

    def mechanisms(self, causal: bool) -> list[str]:
        prototypes = [prototype(name, {}) for name in list_mechanisms(causal=False, grid=False)]
        return [mechanism.name for mechanism in prototypes if not mechanism.traits.remembers]

    def check_candidate(self, mechanism: Mechanism, sizes: InputSizes | None) -> None:
        check_mechanism_for_audio(mechanism.name, mechanism.options.to_dict())

    def compared_at(self, sizes: InputSizes, config: Any, at: float | None) -> InputSize:
        """``at``, by default the result's duration up to :data:`COMPARED_SECONDS`. The source's duration if the base cannot read that."""
        old, new = sizes.old.value, sizes.new.value
        seconds = min(new, max(old, COMPARED_SECONDS)) if at is None else at
        if seconds > new:
            raise LengthError(
                f"Candidates are compared on sounds of up to {sizes.new.words}, which the result reads, not of {seconds:,.5g}; change "
                "--compare-at, or leave it out."
            )
        return self.size(config, seconds if self.rule.base_reads(config, seconds) else old)

    def example(self, folder: Path, config: Mapping[str, Any], length: int) -> Example:
        values, rule = self.values_of(config), self.rule
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

    def decide(self, source: Any, architecture: Any, request: Any, layers_of: Layers) -> InputPlan:
        """As in :class:`SizedKind`. Also raises :class:`LengthError` for a duration at which an untrained result is of no use."""
        if request.positions != AUTO:
            raise PositionError(f"A {architecture.source_class} has no position table or rotary positions; leave --positions out.")
        sound = audio_durations(architecture, request)
        problem = self.rule.why_train(architecture.source_config, architecture.source_class) if sound.grows else ""
        advice = "train the result by longattn train seq2seq --audio, on sounds of the new duration"
        if problem and not request.needs_training:
            old = f"{sound.old.value:g}"
            raise LengthError(
                f"A {architecture.source_class} of {sound.new.words} is of no use untrained: {problem}; leave --audio-seconds "
                f"out, and transcribe longer recordings with transformers' pipeline(…, chunk_length_s={old}), or convert it with "
                "--needs-training and train it by longattn train seq2seq --audio."
            )
        return InputPlan(
            sizes=sound,
            attention=self.attention(architecture, request),
            positions=str(self.rule.positions),
            fields={"long_audio_seconds": sound.new.value} if sound.grows else {},
            warnings=(PositionWarning(problem, advice, "transcripts are of no use"),) if problem else (),
            files=extractor_files(source, sound),
        )

    def attention(self, architecture: Any, request: Any) -> LongAttentionConfig:
        """The requested attention, by default the family's default.

        Raises:
            OptionError: a mechanism cannot read sound.
        """
        kind: Any = self.family.config_class
        attention: LongAttentionConfig = request.attention() if request.names_attention else kind.default_attention()
        layers = architecture.source_config.num_hidden_layers
        attention.check_layers(layers)
        for layer in range(layers):
            check_mechanism_for_audio(*attention.for_layer(layer))
        return attention

    def further_operations(self, skeleton: Any, config: Any) -> int:
        """Multiply-accumulate operations of all convolutions per frame."""
        counted, operations = self.size(config, COUNTED_SECONDS), 0

        def count(module: Any, args: Any, output: Any) -> None:
            nonlocal operations
            frames: Tensor = output[0] if isinstance(output, tuple) else output
            operations += 2 * module.weight[0].numel() * frames.numel()

        model: Any = copy.deepcopy(skeleton).eval()  # a copy, so that use_base_attention does not change the skeleton's config
        model.use_base_attention()
        for module in model.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d)):
                module.register_forward_hook(count)
        with torch.no_grad():
            self.base(model)(**self.rule.arguments(self.rule.seeded(config, COUNTED_SECONDS).to("meta")))
        return operations // (2 * counted.tokens)

    def base_windows(self, config: Any, layers: int) -> list[int | None]:
        return [None] * layers

    def trained_on(self, sizes: InputSizes) -> str:
        return f"sounds of up to {sizes.new.words}"

    def inputs(self, config: Any, folder: Path, recording: Path | None = None) -> VerificationSound:
        return VerificationSound(self.rule, config, load_processor(folder, FEATURE_EXTRACTOR), recording)

    def arguments(self, config: Any, values: Tensor) -> dict[str, Any]:
        return self.rule.arguments(values)

    def check_reader(self, plan: Any, result: Path, inputs: VerificationSound) -> list[Check]:
        """Check that the written feature extractor and tokenizer do what the source's do."""
        transcript = VerificationText(PARAGRAPHS, "a transcript", load_tokenizer(plan.source.folder), MAX_IDS)
        return [_check_extractor(plan, result, inputs), *check_tokenizer(plan, result, transcript)]

    def base(self, model: Any) -> Any:
        """The encoder if the model has a decoder. Otherwise the model without its head."""
        if not self.family.two_stacks:
            return super().base(model)
        return (model if hasattr(model, "encoder") else model.base_model).encoder

    def stack(self, model: Any) -> Any:
        return self.base(model)

    def compared_part(self, model: Any, headless: bool) -> Any:
        return self.base(model) if headless else model

    def base_reads(self, config: Any, size: InputSize) -> bool:
        return self.rule.base_reads(config, size.value)

    def further_checks(self, plan: Any, inputs: VerificationSound, size: InputSize, layers: Sequence[Mechanism]) -> FurtherChecks:
        return PaddingChecks(plan, inputs, size)


def audio_durations(architecture: Any, request: Any) -> InputSizes:
    """The durations of source and result.

    Raises:
        OptionError: the requested value is not a duration.
        LengthError: it is shorter than the source's.
    """
    rule, config = architecture.family.rule, architecture.source_config
    old, read = rule.durations(config)
    new = read if request.audio_seconds is None else rule.converted_seconds(audio_seconds(request.audio_seconds, "--audio-seconds"))
    if new < old:
        raise LengthError(
            f"The source was trained on sounds of up to {duration(old)} and conversion only extends it: {duration(new)} are too few, give "
            f"at least --audio-seconds {old:g}."
        )
    return architecture.kind.sizes_between(config, old, new)


def extractor_files(source: Any, plan: InputSizes) -> dict[str, dict[str, Any]]:
    """The feature extractor's file for the new duration. Empty if nothing grows or no feature extractor cuts or pads sounds."""
    changed, place = plan.kind.rule.extractor_fields(plan.new.value), ProcessorFile.find(source.folder, FEATURE_EXTRACTOR)
    if place is None or not (changed and plan.grows):
        return {}
    return place.with_values(values_with(place, load_processor(source.folder, FEATURE_EXTRACTOR), changed))


class VerificationSound:
    """Verification inputs of any duration.

    Args:
        rule, config: the model's audio rule and config.
        extractor: the source's feature extractor; ``None``: the input is normalised samples or, if the model reads features, seeded ones.
        recording: a user's file, repeated if a longer sound is needed; ``None`` for a seeded sound.

    Raises:
        AudioError: the recording cannot be read, or the sampling rates of feature extractor and model differ.
    """

    def __init__(self, rule: AudioRule, config: Any, extractor: Any | None = None, recording: Path | None = None) -> None:
        self.rule, self.config, self.extractor, self.recording = rule, config, extractor, recording
        rate = rule.sampling_rate if extractor is None else int(getattr(extractor, "sampling_rate", rule.sampling_rate))
        if rate != rule.sampling_rate and rule.features is None:
            raise AudioError(
                f"The feature extractor takes {rate:,} samples a second, but the model reads {rule.sampling_rate:,}; correct sampling_rate "
                f"in its {FILE}."
            )
        self.sampling_rate = rate

    def extracted(self, samples: Samples) -> Tensor:
        """The model's input ``(1, N, …)`` for one sound ``(samples,)``. Computed once, from the whole sound.

        Raises:
            CheckpointError: the feature extractor is damaged, or belongs to another model.
        """
        if self.extractor is None:
            normalised = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
            return torch.from_numpy(normalised)[None]
        with checkpoint_errors("The feature extractor is damaged, or does not fit the sound"):
            how = {"padding": "longest", "truncation": False, "return_tensors": "pt"}  # by default, Whisper's cuts and pads to 30 seconds
            values = self.extractor(samples, sampling_rate=self.sampling_rate, **how)
        if self.rule.input not in values:
            raise CheckpointError(
                f"The feature extractor gives {', '.join(values)}, but the model reads {self.rule.input}; it belongs to another model."
            )
        return values[self.rule.input].float()

    @cached_property
    def _recorded(self) -> Samples | None:
        return None if self.recording is None else read_audio(self.recording, self.sampling_rate, resample=True, mono=True)

    def samples(self, seconds: float) -> Samples:
        """Samples of a sound of this duration, ``(N,)``, as the feature extractor takes them."""
        count = round(seconds * self.sampling_rate)
        recorded = self._recorded
        return seeded_sound(count, self.sampling_rate) if recorded is None else np.resize(recorded, count)

    def features(self, seconds: float) -> Tensor:
        """The model's input ``(1, N, …)`` for one sound of this duration. Computed once, from the whole sound."""
        length = max(self.rule.length(seconds), self.rule.length_of(self.config, 1))
        if self.extractor is None and self.rule.features is not None:
            return self.rule.seeded(self.config, seconds)
        return self.extracted(self.samples(length / self.rule.rate))

    def processed(self, seconds: float) -> Tensor:
        """The feature extractor's output for a sound of this duration. It is called with default settings."""
        count = round(seconds * self.sampling_rate)
        samples = np.resize(self.samples(min(seconds, REPEATED_SECONDS)), count)
        extractor: Any = self.extractor
        with checkpoint_errors("The feature extractor is damaged, or does not fit the sound"):
            return extractor(samples, sampling_rate=self.sampling_rate, return_tensors="pt")[self.rule.input]

    def at(self, size: InputSize) -> dict[str, Any]:
        """The arguments of ``forward`` for one sound of this duration."""
        return self.rule.arguments(self.features(size.value))

    def why_chunks_differ(self) -> str:
        """Why a chunk's frames differ from the whole sound's even before attention, as a clause. Empty if they do not."""
        reasons = []
        if getattr(self.extractor, "do_normalize", self.rule.features is None):
            reasons.append(f"{'samples are' if self.rule.features is None else 'features are'} normalised over it")
        return ", and ".join(filter(None, [*reasons, self.rule.why_chunks_differ(self.config)]))

    def describe(self) -> str:
        """Description of the inputs for a report."""
        if self.extractor is None and self.rule.features is not None:
            return "seeded features, since the source has no feature extractor"
        return "a seeded sound" if self.recording is None else f"the recording {self.recording.name}"


def seeded_sound(count: int, rate: int) -> Samples:
    """``count`` deterministic samples like a voice. Harmonics of a gliding tone, modulated as syllables, with noise."""
    generator = np.random.default_rng(0)
    seconds = np.arange(count) / rate
    pitch = 130 + 30 * np.sin(2 * np.pi * 0.4 * seconds)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voice = sum(np.sin(number * phase + number) / number for number in range(1, 12))
    syllables = np.clip(np.sin(2 * np.pi * 2.5 * seconds), 0, None)
    return np.asarray(0.2 * voice * syllables + 0.003 * generator.standard_normal(count), np.float32)


def _check_extractor(plan: Any, result: Path, inputs: VerificationSound) -> Check:
    name, rule, sound = "feature extractor", inputs.rule, plan.inputs
    if inputs.extractor is None:
        return Check(name, SKIPPED, f"the source has no feature extractor, so make inputs of {sound.new.words} as it was trained")
    try:
        written = VerificationSound(rule, plan.config, load_processor(result, FEATURE_EXTRACTOR), inputs.recording)
        same = torch.equal(written.features(EXTRACTED_SECONDS), inputs.features(EXTRACTED_SECONDS))
        duration_in = min(sound.new.value, PROCESSED_SECONDS)
        duration_out = rule.seconds(rule.as_input(written.processed(duration_in)).shape[1])
    except CheckpointError as error:
        return Check(name, FAILED, str(error).rstrip("."))
    kind = type(inputs.extractor).__name__
    detail = (
        f"the {kind} of the result gives {'the same input as' if same else 'another input than'} the source's, at "
        f"{inputs.sampling_rate:,} samples a second; a sound of {duration(duration_in)} becomes an input of "
        f"{duration(round(duration_out, 1))}"
    )
    if not (good := abs(duration_out - duration_in) <= WINDOW_SECONDS):
        detail += "; correct the fields of the feature extractor's file that cut or pad sounds"
    return Check(name, PASSED if same and good else FAILED, detail, {"audio_seconds": duration_out})


class PaddingChecks(FurtherChecks):
    """Checks that padding changes no frame. Also reports what depends on the whole sound besides attention."""

    runs = 3

    def __init__(self, plan: Any, inputs: VerificationSound, size: InputSize) -> None:
        self.plan, self.sounds, self.size = plan, inputs, size

    def run_result(self, base: Any) -> list[Check]:
        reasons = self.sounds.why_chunks_differ()  # even before attention
        effect = f": {reasons}, so that a chunk alone differs from the same frames in the whole sound before any attention"
        if not reasons:
            effect = "; before attention, each frame depends on the sound near it alone, as it does in chunks"
        whole = Check("what sees the whole sound", MEASURED, f"features were computed once, from the whole sound{effect}")
        return [_check_padding(self.plan.config, base, self.sounds, self.size), whole]


def _check_padding(config: Any, base: Any, inputs: VerificationSound, at: InputSize) -> Check:
    """Check that a sound's frames are the same with and without padding after it."""
    name, rule = "padding changes nothing", inputs.rule
    if why := rule.why_padding_changes(config):
        return Check(name, SKIPPED, f"does not apply: {why}, so that padding changes what the source computes as well")
    sound = inputs.features(at.value)
    length = round(PADDED * sound.shape[1])
    if rule.output_rows(config, length) < 1:
        return Check(name, SKIPPED, f"{at.words} are too short for padding")
    padded = sound.clone()
    padded[:, length:] = 0
    alone = run_model(base, rule.arguments(sound[:, :length], [length]))["last_hidden_state"]
    together = run_model(base, rule.arguments(padded, [length]))["last_hidden_state"][:, : alone.shape[1]]
    detail = f"a sound of {duration(rule.seconds(length))} alone, and padded to {at.words}: largest difference"
    return equality(name, detail, Difference.of({"frames": alone}, {"frames": together}), {})
