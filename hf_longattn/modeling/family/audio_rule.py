"""How sound becomes the tokens of a model's layers, which are frames: a stretch of samples, or of rows of a spectrogram, each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import AudioError, MaskError
from .stream_rule import Chain, Section, StreamRule, unpadded_convolutions

if TYPE_CHECKING:
    from torch import Tensor


MASK = "attention_mask"
"""The argument of ``forward`` with 1 for every sample, or row of features, that is not padding."""


def encoder_config(config: Any) -> Any:
    """The config of the layers with attention: that of the encoder inside, where it has its own (Parakeet's heads)."""
    encoder = getattr(config, "encoder_config", config)
    return SimpleNamespace(**encoder) if isinstance(encoder, dict) else encoder  # of a file


def convolved(config: Any, length: int) -> int:
    """The frames of ``length`` samples after the convolutions of wav2vec 2.0's feature encoder."""
    return Chain(tuple(unpadded_convolutions(config))).total(length)


def adapted(config: Any, length: int) -> int:
    """The rows of the last hidden state for ``length`` samples: frames, fewer after Wav2Vec2's adapter."""
    frames = convolved(config, length)
    for _ in range(config.num_adapter_layers if getattr(config, "add_adapter", False) else 0):
        frames = (frames - 1) // config.adapter_stride + 1
    return frames


def normalised_features(config: Any) -> str:
    """What a feature extractor does that normalises spectrograms."""
    return "its feature extractor normalises every feature over the whole sound"


@dataclass(frozen=True)
class AudioRule:
    """The sound that a model reads, and the frames on which its attention runs.

    input: the argument of ``forward`` with the sound: samples ``(B, N)``, or features ``(B, N, F)``; ``N`` is called its length.
    rate: samples, or rows of features, in a second.
    features: the number of features of a row with a config; ``None`` for samples.
    time_axis: the axis of the input along time.
    front: the sections from the input to the tokens of the layers with attention, with a config.
    outputs: ``(config, length) ->`` rows of the last hidden state, where they are not one for each frame.
    positions: how positions are encoded, in a word.
    longest: the most frames for which the model has positions with a config; ``None`` where nothing limits them.
    why_chunks_differ: why the frames of a chunk have other features alone than in the whole sound before any attention; empty where they
        have the same, but for the convolutions at its ends.
    why_padding_changes: why the frames of a sound with padding after it differ from those of the sound alone, mask or not; empty where
        they do not.
    why_train: ``(config, head) ->`` why the class of the base ``head`` needs training on sounds longer than those of the source; empty
        where that is not known beforehand.
    extractor_fields: ``(seconds) ->`` fields of the feature extractor that cut or pad a sound to this duration.
    hands_keywords_down: whether the base hands keywords of its ``forward`` down to its attention modules.
    stream: how far its parts look along time, where :class:`hf_longattn.streaming.Stream` can read a stream with it.
    no_stream: why it cannot, and what to do instead.
    """

    input: str = "input_values"
    rate: int = 16_000
    features: Callable[[Any], int] | None = None
    time_axis: int = 1
    front: Callable[[Any], Sequence[Section]] = unpadded_convolutions
    outputs: Callable[[Any, int], int] | None = None
    positions: str = "convolved"
    longest: Callable[[Any], int | None] = lambda config: None
    why_chunks_differ: Callable[[Any], str] = lambda config: ""
    why_padding_changes: Callable[[Any], str] = lambda config: ""
    why_train: Callable[[Any, str], str] = lambda config, head: ""
    extractor_fields: Callable[[float], Mapping[str, Any]] = lambda seconds: {}
    hands_keywords_down: bool = True
    stream: StreamRule | None = None
    no_stream: str = ""
    sampling_rate: ClassVar[int] = 16_000
    """Samples in a second of the recording from which a feature extractor makes the input."""

    @property
    def unit(self) -> str:
        """What the input is counted in."""
        return "samples" if self.features is None else "rows of features"

    def durations(self, config: Any) -> tuple[float, float]:
        """Seconds of the longest sound for which the base was trained, and for which the model was converted."""
        trained, converted = self.trained_seconds(config), getattr(config, "long_audio_seconds", None)
        return trained, trained if converted is None else converted

    def trained_seconds(self, config: Any) -> float:
        """The longest sound with which checkpoints were trained, where nothing limits what they read."""
        return 15

    def base_reads(self, config: Any, seconds: float) -> bool:
        """Whether the base reads a sound of this duration, longer than those with which it was trained."""
        return True

    def most_frames(self, config: Any) -> int:
        """The frames of the longest sound for which a model with this config was made."""
        return self.frames(config, self.length(self.durations(config)[1]))

    def longest_seconds(self, config: Any) -> float:
        """The duration of the longest sound for which the model has positions."""
        longest = self.longest(config)
        return math.inf if longest is None else self.seconds(self.length_of(config, longest + 1) - 1)

    def converted_seconds(self, seconds: float) -> float:
        """The duration for which a model is converted that is to read this many seconds."""
        return seconds

    def step(self, config: Any) -> int:
        """Samples, or rows of features, from a row of the last hidden state to the next."""
        hour = self.length(3600)
        return round(hour / self.output_rows(config, hour))

    def frame_seconds(self, config: Any) -> float:
        """Seconds from a token of the layers with attention to the next."""
        hour = self.length(3600)
        return self.seconds(round(hour / self.frames(config, hour)))

    def layers(self, config: Any) -> int:
        """The number of layers with attention."""
        return int(encoder_config(config).num_hidden_layers)

    def frames(self, config: Any, length: int) -> int:
        """The tokens of the layers with attention for an input of this length, at most; at least one is computed."""
        return Chain(tuple(self.front(config))).total(length)

    def length(self, seconds: float) -> int:
        """The length of an input of this many seconds."""
        return round(seconds * self.rate)

    def seconds(self, length: int) -> float:
        """The duration of an input of this length."""
        return length / self.rate

    def output_rows(self, config: Any, length: int) -> int:
        """The rows of the last hidden state for an input of this length."""
        return (self.frames if self.outputs is None else self.outputs)(config, length)

    def length_of(self, config: Any, frames: int) -> int:
        """The shortest input with this many frames."""
        low, high = 0, 1
        while self.frames(config, high) < frames:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.frames(config, middle) >= frames else (middle, high)
        return high

    def frames_per_second(self, config: Any) -> float:
        """The frames of a second of sound, in a long one."""
        hour = self.length(3600)
        return self.frames(config, hour) / self.seconds(hour)

    def multiple(self, config: Any) -> int:
        """What the length of an input is a multiple of."""
        return 1

    def seeded(self, config: Any, seconds: float) -> Tensor:
        """An input of this many seconds, the same at every call: normal random numbers ``(1, N)``, or with features along another axis."""
        import torch

        length = max(self.length(seconds), self.length_of(config, 1))
        shape = (length,) if self.features is None else (length, self.features(config))
        return self.as_input(torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))).contiguous()

    def as_input(self, rows: Tensor) -> Tensor:
        """Sounds ``(B, N, …)`` with the axes in the order in which the model reads them, and back."""
        return rows.movedim(1, self.time_axis)

    def arguments(self, sound: Tensor, lengths: list[int] | None = None) -> dict[str, Any]:
        """The arguments of ``forward`` for ``sound (B, N, …)``, the sound first; with a mask where ``lengths`` of the rows are given."""
        import torch

        if lengths is None:
            return {self.input: sound}
        return {self.input: sound, MASK: (torch.arange(sound.shape[1]) < torch.tensor(lengths)[:, None]).long()}

    def check(self, config: Any, arguments: Mapping[str, Any], *, values: bool = True) -> None:
        """Raise for an input that the model cannot read, or of which it would take padding for sound.

        Args:
            values: whether the values of a mask are known (not in a graph).

        Raises:
            AudioError: a wrong shape or type, or a sound too short for one frame, or too long for the positions.
            MaskError: a mask that does not fit, or with padding before the sound.
        """
        sound = arguments.get(self.input)
        if sound is None:
            return
        axes = "(batch, samples)" if self.features is None else "(batch, rows, features)"
        if sound.dim() != (2 if self.features is None else 3):
            raise AudioError(f"{self.input} has shape {tuple(sound.shape)}, but must be {axes}; mix stereo down to one channel.")
        if not sound.is_floating_point():
            raise AudioError(
                f"{self.input} are {str(sound.dtype).removeprefix('torch.')} numbers; give floats as the model's feature extractor does."
            )
        length, least = sound.shape[1], self.length_of(config, 1)
        if length < least:
            raise AudioError(
                f"The sound has {length} {self.unit}, but a frame takes {least} ({self.seconds(least):.3g} s); give a longer sound, or "
                "pad it with zeros."
            )
        longest = self.longest(config)
        if longest is not None and self.frames(config, length) > longest:
            most = self.longest_seconds(config)
            raise AudioError(
                f"The sound takes {self.seconds(length):,.1f} seconds, but the model has positions for {most:,.1f}, which are not "
                "extended; cut the sound."
            )
        mask = arguments.get(MASK)
        if mask is None:
            return
        if mask.shape != sound.shape[:2]:
            raise MaskError(
                f"{MASK} has shape {tuple(mask.shape)}, but must be (batch, {self.unit}) = {tuple(sound.shape[:2])}, with 1 for sound; "
                "take it from the feature extractor with return_attention_mask=True."
            )
        if not values:
            return
        real = mask != 0
        if bool((real[:, 1:] > real[:, :-1]).any()):
            raise MaskError(f'{MASK} has padding before sound, but padding must come after it; pad with padding_side="right".')
        if bool((shortest := real.sum(1).min()) < least):
            raise AudioError(
                f"A sound of the batch has {int(shortest)} {self.unit}, but a frame takes {least} ({self.seconds(least):.3g} s); leave it "
                "out, or pad it with zeros and a mask of 1."
            )
