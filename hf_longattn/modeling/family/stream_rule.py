"""How far each part of a model of sound looks along time, so that a stream can be read with memory that does not grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...positions.distances import Locality


class Section(Protocol):
    """A part of a model along time: what its outputs depend on."""

    @property
    def stride(self) -> int:
        """Inputs from one output to the next."""

    def final(self, seen: int) -> int:
        """How many outputs no later input changes, after ``seen`` inputs."""

    def total(self, seen: int) -> int:
        """How many outputs there are of ``seen`` inputs and no more."""

    def first(self, output: int) -> int:
        """The input from which the part computes the outputs from ``output`` on as it does from the first; a multiple of the stride."""


@dataclass(frozen=True)
class Convolution:
    """Output t depends on the inputs ``stride * t - left … stride * t - left + kernel - 1``.

    left, right: zeros before the first input and after the last one.
    """

    kernel: int
    stride: int = 1
    left: int = 0
    right: int = 0

    @classmethod
    def centred(cls, kernel: int) -> Convolution:
        """A convolution with as many outputs as inputs, which looks as far back as ahead; one further back with an even kernel."""
        return cls(kernel, 1, kernel // 2, kernel - 1 - kernel // 2)

    @classmethod
    def causal(cls, kernel: int, stride: int = 1) -> Convolution:
        """A convolution that looks back only."""
        return cls(kernel, stride, kernel - 1)

    def final(self, seen: int) -> int:
        return self._count(seen + self.left)

    def total(self, seen: int) -> int:
        return self._count(seen + self.left + self.right) if seen else 0

    def first(self, output: int) -> int:
        return max(0, output * self.stride - self.left) // self.stride * self.stride

    def _count(self, inputs: int) -> int:
        return max(0, (inputs - self.kernel) // self.stride + 1)


@dataclass(frozen=True)
class Attention:
    """The attention of a layer."""

    local: Locality
    stride: int = 1

    def final(self, seen: int) -> int:
        return self.local.final(seen)

    def total(self, seen: int) -> int:
        return seen

    def first(self, output: int) -> int:
        return self.local.first(output)


@dataclass(frozen=True)
class Chain:
    """Parts one after the other; none is the identity."""

    parts: tuple[Section, ...] = ()

    @property
    def stride(self) -> int:
        stride = 1
        for part in self.parts:
            stride *= part.stride
        return stride

    def final(self, seen: int) -> int:
        for part in self.parts:
            seen = part.final(seen)
        return seen

    def total(self, seen: int) -> int:
        for part in self.parts:
            seen = part.total(seen)
        return seen

    def first(self, output: int) -> int:
        for part in reversed(self.parts):
            output = part.first(output)
        return output // self.stride * self.stride


@dataclass(frozen=True)
class Positions:
    """Where the layers of a base get the positions of their frames.

    module: the module of the base that makes them from states, of which it reads the number.
    keyword: the argument of a layer.
    counted: whether positions count from the beginning of the stream, so that the module takes the number of the first frame as well;
        otherwise they are those of the distances of frames and the keys that were kept.
    """

    module: str
    keyword: str = "position_embeddings"
    counted: bool = False


@dataclass(frozen=True)
class StreamRule:
    """The parts of a base model of sound between which frames pass, after those that make frames of the input.

    encoder: the module of the base whose first argument is these frames, where something before the layers looks along time, and the
        sections of that, with a config (``"encoder"``, a convolution over frames as positions); ``None`` where nothing does.
    layers: the name of the list of layers in the base, whose first argument is frames.
    inside: the sections of a layer after its attention, with a config.
    positions: how the layers get the positions of their frames, with a config; ``None`` where they get none.
    multiple: the base takes a multiple of this number of inputs, with a config; what is left at the end of a stream is dropped.
    refusal: why the base needs the whole sound with a config, and what to use instead; empty where it does not.
    """

    encoder: tuple[str, Callable[[Any], Sequence[Section]]] | None = None
    layers: str = "encoder.layers"
    inside: Callable[[Any], Sequence[Section]] = lambda config: ()
    positions: Callable[[Any], Positions | None] = lambda config: None
    multiple: Callable[[Any], int] = lambda config: 1
    refusal: Callable[[Any], str] = lambda config: ""


def unpadded_convolutions(config: Any) -> list[Convolution]:
    """The feature encoder of wav2vec 2.0 and its successors."""
    return [Convolution(kernel, stride) for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True)]


def position_convolution(config: Any) -> list[Convolution]:
    """Their convolution over frames, which tells positions."""
    return [Convolution.centred(config.num_conv_pos_embeddings)]


def normalised_over_time(config: Any) -> str:
    """What a feature encoder with a norm over the whole sound does; empty with a norm over the channels of each frame."""
    if config.feat_extract_norm != "group":
        return ""
    return "its feature encoder normalises every channel over the whole sound (feat_extract_norm='group')"


def normalised_feature_encoder(config: Any) -> str:
    """Why some of them need the whole sound."""
    why, instead = normalised_over_time(config), "use a checkpoint with a norm over the channels of each frame (feat_extract_norm='layer')"
    return why and f"{why}; {instead}, such as those of wav2vec2-large-lv60 and XLS-R"


WAV2VEC2_STREAM = StreamRule(("encoder", position_convolution), refusal=normalised_feature_encoder)
"""The rule of wav2vec 2.0 and of what has its modules."""
