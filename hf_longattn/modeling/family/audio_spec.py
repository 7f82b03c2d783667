"""Sound: how many frames an input has, what a model reads, and the config of Long audio models.

Frames are the tokens of an audio model. A frame covers several samples, or several rows of a spectrogram.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ...configuration import LongAttentionConfig
from ...errors import InputError, OptionError
from ...mechanisms import Mechanism
from ...mechanisms.common.masked import MaskedMechanism
from .definition import without_head
from .input_spec import Example, InputSize, InputSizes, InputSpec, has_processor
from .long_config import LongEncoderConfig

COUNTED_SECONDS = 10.0
"""Duration of the input, on the meta device, for which the operations of convolutions are counted."""
SHOWN_SECONDS = 30
"""Maximum duration, in seconds, of the sound in a model card's example, so that the example runs quickly."""
MASK = "attention_mask"
"""The argument of ``forward`` with 1 for every real sample, or row of features, and 0 for padding."""


@dataclass(frozen=True)
class Convolution:
    """The shape of a convolution along time. Output t depends on the ``kernel`` inputs from ``stride * t - left`` on.

    left, right: number of zeros added before the first input and after the last one.
    """

    kernel: int
    stride: int = 1
    left: int = 0
    right: int = 0

    def outputs(self, inputs: int) -> int:
        """Number of outputs for this number of inputs."""
        return max(0, (inputs + self.left + self.right - self.kernel) // self.stride + 1) if inputs else 0


def outputs_of(convolutions: Sequence[Convolution], inputs: int) -> int:
    """Number of outputs of a chain of convolutions for this number of inputs."""
    for convolution in convolutions:
        inputs = convolution.outputs(inputs)
    return inputs


def unpadded_convolutions(config: Any) -> list[Convolution]:
    """The convolutions of the feature encoder of wav2vec 2.0 and its successors."""
    return [Convolution(kernel, stride) for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True)]


def normalised_over_time(config: Any) -> str:
    """Why padding changes the frames of a wav2vec 2.0 model, even with a mask: its feature encoder has a norm over
    time. Empty if the norm is over the channels of each frame."""
    if config.feat_extract_norm != "group":
        return ""
    return "its feature encoder normalises every channel over the whole sound (feat_extract_norm='group')"


def adapted(config: Any, length: int) -> int:
    """Number of rows of the last hidden state for ``length`` samples. There is one row per frame, or fewer if the
    model has Wav2Vec2's adapter, which shortens its output."""
    frames = outputs_of(unpadded_convolutions(config), length)
    for _ in range(config.num_adapter_layers if getattr(config, "add_adapter", False) else 0):
        frames = (frames - 1) // config.adapter_stride + 1
    return frames


@dataclass(frozen=True)
class AudioSpec(InputSpec):
    """The sound that a model reads, and the frames on which its attention runs. Arrows describe functions.

    input: the argument of ``forward`` with the sound: samples ``(B, N)``, or features ``(B, N, F)``. Methods call
        ``N`` the length.
    rate: samples, or rows of features, per second.
    features: ``config ->`` number of features per row; ``None`` for samples.
    time_axis: the input's axis along time.
    front: ``config ->`` the convolutions from the input to the frames.
    outputs: ``(config, length) ->`` number of rows of the last hidden state; ``None`` for one row per frame.
    positions: how positions are encoded, as one word.
    why_padding_changes: ``config ->`` why padding after a sound changes its frames, even with a mask; empty if it does
        not.
    why_train: ``(config, head) ->`` why the base's class ``head`` needs training for sounds longer than the source's;
        empty if no reason is known.
    extractor_fields: ``seconds ->`` fields of the feature extractor that cut or pad a sound to this duration.
    hands_keywords_down: whether the base passes keyword arguments of ``forward`` on to its attention modules.
    reads_longer: whether the base reads sounds longer than those in its training.
    """

    reads, noun, nouns, units = "sound", "sound", "sounds", "seconds"
    timed = True
    mixins = ("modeling.sounds.LongAudioMixin", "modeling.sounds.LongAudioModelMixin")
    docstring = """{base} with the mechanisms of ``config.long_attention``.

``forward`` takes the arguments of {base}, and ``global_attention_mask (B, frames)``, 1 = global frame.
:meth:`use_base_attention` computes the attention of {base} instead.
"""
    input: str = "input_values"
    rate: int = 16_000
    features: Callable[[Any], int] | None = None
    time_axis: int = 1
    front: Callable[[Any], Sequence[Convolution]] = unpadded_convolutions
    outputs: Callable[[Any, int], int] | None = None
    positions: str = "convolved"
    why_padding_changes: Callable[[Any], str] = lambda config: ""
    why_train: Callable[[Any, str], str] = lambda config, head: ""
    extractor_fields: Callable[[float], Mapping[str, Any]] = lambda seconds: {}
    hands_keywords_down: bool = True
    reads_longer: bool = True
    sampling_rate: ClassVar[int] = 16_000
    """Samples per second of the recordings from which a feature extractor makes the input."""

    def durations(self, config: Any) -> tuple[float, float]:
        """Two maximum durations in seconds: in the base's training, and of the converted model."""
        trained = self.trained_seconds(config)
        converted = getattr(config, "long_audio_seconds", None)
        return trained, trained if converted is None else converted

    def size(self, config: Any, value: Any) -> InputSize:
        """The size of a sound of ``value`` seconds, and at least one frame."""
        length = max(self.length(value), self.length_of(config, 1))
        return InputSize(value, self.frames(config, length), duration(value), "audio_seconds")

    def sizes(self, family: Any, config: Any) -> InputSizes:
        return self.between(config, *self.durations(config), self.reads_longer)

    def check_mechanism(self, mechanism: Mechanism) -> None:
        """Refuse mechanisms that need token ids, a grid, or segments with a memory."""
        instead = "choose for example 'window'."
        if mechanism.capabilities.images == "segments":
            raise OptionError(
                f"Mechanism {mechanism.name!r} reads one segment of a text after the other and remembers the earlier "
                f"ones, but frames of a sound see what comes after them; {instead}"
            )
        if mechanism.capabilities.needs_grid:
            raise OptionError(
                f"Mechanism {mechanism.name!r} reads an image's patches, but a sound is one line; {instead}"
            )
        if isinstance(mechanism, MaskedMechanism) and mechanism.global_token_ids is not None:
            raise OptionError(
                f"The options of mechanism {mechanism.name!r} name global tokens by their ids, but frames of a sound "
                "have none; name them by position, for example with global_tokens=0."
            )

    def example(self, folder: Path, config: Any, length: int) -> Example:
        """Code for a card that makes an input: with the feature extractor if the folder has one, else random."""
        seconds = min(self.durations(config)[1], SHOWN_SECONDS)
        task = "feature-extraction"
        if has_processor(folder):
            lines = (
                "samples = "
                f"np.random.default_rng(0).standard_normal({round(seconds * self.sampling_rate)}).astype(np.float32)  "
                f'# {seconds:g} s; or yours: soundfile.read("talk.wav")[0]\n'
                f'inputs = processor(samples, sampling_rate={self.sampling_rate}, return_tensors="pt")'
            )
            return Example(task, ("processor", "AutoFeatureExtractor"), lines, ("import numpy as np",))
        shape = [1, self.length(seconds)]
        if self.features is not None:
            shape.append(self.features(config))
        line = (
            f'inputs = {{"{self.input}": torch.randn{tuple(shape)}}}  # {seconds:g} s, normalised as the model was '
            "trained"
        )
        return Example(task, None, line)

    def trained_seconds(self, config: Any) -> float:
        """Maximum duration, in seconds, of sounds in the base's training. The default is for bases that read sounds of
        any duration."""
        return 15

    def further_operations(self, config: Any, skeleton: Any) -> int:
        """Multiply-accumulate operations of all convolutions per frame. They are counted in a forward pass on the meta
        device."""
        operations = 0

        def count(module: Any, args: Any, output: Any) -> None:
            """Forward hook of a convolution. Adds its operations; a multiply–add counts as two."""
            nonlocal operations
            values = output[0] if isinstance(output, tuple) else output
            operations += 2 * module.weight[0].numel() * values.numel()

        # a copy, so that use_base_attention does not change the skeleton's config
        model = copy.deepcopy(skeleton).eval()
        model.use_base_attention()
        for module in model.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                module.register_forward_hook(count)
        stack = model.get_encoder() if config.is_encoder_decoder else without_head(model)
        with torch.no_grad():
            stack(**self.arguments(self.seeded(config, COUNTED_SECONDS).to("meta")))
        return operations // (2 * self.frames(config, self.length(COUNTED_SECONDS)))

    def converted_seconds(self, seconds: float) -> float:
        """The duration, in seconds, for which a model is converted if a user asks for ``seconds``."""
        return seconds

    def step(self, config: Any) -> int:
        """Samples, or rows of features, between rows of the last hidden state."""
        hour = self.length(3600)
        return round(hour / self.output_rows(config, hour))

    def frames(self, config: Any, length: int) -> int:
        """Maximum number of frames for an input of this length; 0 if the input is too short for one."""
        return outputs_of(self.front(config), length)

    def length(self, seconds: float) -> int:
        """The length of an input of this duration."""
        return round(seconds * self.rate)

    def seconds(self, length: int) -> float:
        """The duration, in seconds, of an input of this length."""
        return length / self.rate

    def output_rows(self, config: Any, length: int) -> int:
        """Number of rows of the last hidden state for an input of this length."""
        return (self.frames if self.outputs is None else self.outputs)(config, length)

    def length_of(self, config: Any, frames: int) -> int:
        """The length of the shortest input with this many frames."""
        return bisect_left(range(2**40), frames, key=lambda length: self.frames(config, length))

    def seeded(self, config: Any, seconds: float) -> Tensor:
        """A random input of this duration from a normal distribution, the same in every call. ``(1, N)``, or with an
        axis of features in the model's order of axes."""
        length = max(self.length(seconds), self.length_of(config, 1))
        shape = (length,) if self.features is None else (length, self.features(config))
        return self.as_input(torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))).contiguous()

    def as_input(self, rows: Tensor) -> Tensor:
        """Move the axis of time in sounds ``(B, N, …)`` to the model's ``time_axis``. The same call moves it back."""
        return rows.movedim(1, self.time_axis)

    def arguments(self, sound: Tensor, lengths: list[int] | None = None) -> dict[str, Any]:
        """Keyword arguments of ``forward``: the sound first, and then a mask ``(B, N)`` if lengths are given.

        Args:
            sound: ``(B, N, …)``.
            lengths: the length of each sound without padding.
        """
        if lengths is None:
            return {self.input: sound}
        real = torch.arange(sound.shape[1]) < torch.tensor(lengths)[:, None]
        return {self.input: sound, MASK: real.long()}

    def check(self, config: Any, arguments: Mapping[str, Any], *, values: bool = True) -> None:
        """Raise an error if the model cannot read the input, or would read padding as sound.

        Args:
            arguments: the arguments of ``forward``, by name.
            values: whether to check the values of the mask, which a graph does not know.

        Raises:
            InputError: the shape or type is wrong, the sound is too short for one frame, or the mask does not fit or
                begins with padding.
        """
        sound = arguments.get(self.input)
        if sound is None:
            return
        unit = "samples" if self.features is None else "rows of features"
        axes = "(batch, samples)" if self.features is None else "(batch, rows, features)"
        if sound.dim() != (2 if self.features is None else 3):
            raise InputError(
                f"{self.input} has shape {tuple(sound.shape)}, but must be {axes}; mix stereo down to one channel."
            )
        if not sound.is_floating_point():
            raise InputError(
                f"{self.input} are {str(sound.dtype).removeprefix('torch.')} numbers; give floats as the model's "
                "feature extractor does."
            )
        length = sound.shape[1]
        if self.frames(config, length) < 1:
            least = self.length_of(config, 1)
            raise InputError(
                f"The sound has {length} {unit}, but a frame takes {least} ({self.seconds(least):.3g} s); give a "
                "longer sound, or pad it with zeros."
            )
        mask = arguments.get(MASK)
        if mask is None:
            return
        if mask.shape != sound.shape[:2]:
            raise InputError(
                f"{MASK} has shape {tuple(mask.shape)}, but must be (batch, {unit}) = {tuple(sound.shape[:2])}, with "
                "1 for sound; take it from the feature extractor with return_attention_mask=True."
            )
        if not values:
            return
        real = mask != 0
        if bool((real[:, 1:] > real[:, :-1]).any()):
            raise InputError(
                f'{MASK} has padding before sound, but padding must come after it; pad with padding_side="right".'
            )
        shortest = int(real.sum(1).min())
        if self.frames(config, shortest) < 1:
            least = self.length_of(config, 1)
            raise InputError(
                f"A sound of the batch has {shortest} {unit}, but a frame takes {least} "
                f"({self.seconds(least):.3g} s); leave it out, or pad it with zeros and a mask of 1."
            )


WAV2VEC2 = AudioSpec(outputs=adapted, why_padding_changes=normalised_over_time)
"""The spec of wav2vec 2.0, and of bases with the same input."""


class LongAudioConfig(LongEncoderConfig):
    """Mixin before the base's config class: ``class LongWav2Vec2Config(LongAudioConfig, Wav2Vec2Config)``.

    long_attention: as in a text model. The default is a ``window`` of :attr:`context_frames` on each side.
    long_audio_seconds: duration, in seconds, for which the model was converted. The model also reads longer sounds, up
        to its last position.
    """

    default_mechanism = "window"
    input_spec = WAV2VEC2
    context_frames: ClassVar[int] = 512
    """Default number of frames that a frame sees on each side: 10.24 s, as in NeMo's ``att_context_size=[128, 128]``
    of 80 ms frames."""

    if TYPE_CHECKING:
        long_audio_seconds: float | None
    else:
        long_audio_seconds = None

    def __post_init__(self, **kwargs: Any) -> None:
        seconds = kwargs.pop("long_audio_seconds", None)
        self.long_audio_seconds = None if seconds is None else audio_seconds(seconds, "long_audio_seconds")
        super().__post_init__(**kwargs)

    def default_attention(self) -> LongAttentionConfig:
        return LongAttentionConfig("window", left=self.context_frames, right=self.context_frames)


def duration(seconds: float) -> str:
    """A duration as text, for example "15 seconds"."""
    return f"{seconds:,.5g} seconds"


def audio_seconds(seconds: Any, name: str) -> float:
    """Check a duration and return it.

    Args:
        name: the name of the duration in messages.

    Raises:
        OptionError: it is not a number above 0.
    """
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds < float("inf"):
        raise OptionError(f"{name} is {seconds!r}, but must be a number of seconds above 0, for example 600.")
    return seconds
