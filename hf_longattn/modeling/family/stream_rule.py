"""How far each part of an audio model looks along time. Streams can then be read in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...positions.distances import Locality


class Section(Protocol):
    """A part of a model that maps inputs along time to outputs. It knows which inputs an output depends on."""

    @property
    def stride(self) -> int:
        """Number of inputs from one output to the next."""

    def final(self, seen: int) -> int:
        """Number of outputs that later inputs cannot change, after ``seen`` inputs."""

    def total(self, seen: int) -> int:
        """Number of outputs if the stream ends after ``seen`` inputs."""

    def first(self, output: int) -> int:
        """The input at which to start in order to compute the outputs from ``output`` on. A multiple of the stride."""


@dataclass(frozen=True)
class Convolution:
    """Output t depends on ``kernel`` inputs from ``stride * t - left`` on.

    left, right: number of zeros before the first input and after the last one.
    """

    kernel: int
    stride: int = 1
    left: int = 0
    right: int = 0

    @classmethod
    def centred(cls, kernel: int) -> Convolution:
        """A convolution with as many outputs as inputs. It looks equally far back and ahead, or one further back if the kernel is even."""
        return cls(kernel, 1, kernel // 2, kernel - 1 - kernel // 2)

    @classmethod
    def causal(cls, kernel: int, stride: int = 1) -> Convolution:
        """A convolution that looks only back."""
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
    """A layer's attention, as a :class:`Section`."""

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
    """Sections in sequence; without any, the identity."""

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
    """How the layers of a base get the positions of their frames.

    module: the base's module that computes them. It uses only the number of hidden states, not their values.
    keyword: the argument of a layer that takes them.
    counted: whether positions count from the stream's start, so that the module also needs the first frame's number. If not, they
        encode distances between frames and stored keys.
    """

    module: str
    keyword: str = "position_embeddings"
    counted: bool = False


@dataclass(frozen=True)
class StreamRule:
    """The parts of an audio base that process frames, one after another.

    encoder: a pair: the base's module that takes frames as first argument (``"encoder"``), and ``config ->`` the sections before the
        layers (a convolution over frames as positions). ``None`` if nothing before the layers looks along time.
    layers: the name of the base's list of layers. Each layer takes frames as first argument.
    inside: ``config ->`` the sections of a layer after its attention.
    positions: ``config ->`` how layers get the positions of frames; ``None`` if they get none.
    multiple: ``config ->`` the number of which the count of inputs must be a multiple. A rest at the end of a stream is dropped.
    refusal: ``config ->`` why the base needs the whole sound, and what to use instead; empty if it does not.
    """

    encoder: tuple[str, Callable[[Any], Sequence[Section]]] | None = None
    layers: str = "encoder.layers"
    inside: Callable[[Any], Sequence[Section]] = lambda config: ()
    positions: Callable[[Any], Positions | None] = lambda config: None
    multiple: Callable[[Any], int] = lambda config: 1
    refusal: Callable[[Any], str] = lambda config: ""


def unpadded_convolutions(config: Any) -> list[Convolution]:
    """The convolutions of the feature encoder of wav2vec 2.0 and its successors."""
    return [Convolution(kernel, stride) for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True)]


def position_convolution(config: Any) -> list[Convolution]:
    """The convolution over frames that encodes positions in wav2vec 2.0 and its successors."""
    return [Convolution.centred(config.num_conv_pos_embeddings)]


def normalised_over_time(config: Any) -> str:
    """Why a feature encoder needs the whole sound: its norm is over time. Empty if the norm is over the channels of each frame."""
    if config.feat_extract_norm != "group":
        return ""
    return "its feature encoder normalises every channel over the whole sound (feat_extract_norm='group')"


def normalised_feature_encoder(config: Any) -> str:
    """The text that refuses streams if the feature encoder needs the whole sound. Empty for others."""
    why, instead = normalised_over_time(config), "use a checkpoint with a norm over the channels of each frame (feat_extract_norm='layer')"
    return why and f"{why}; {instead}, such as those of wav2vec2-large-lv60 and XLS-R"


WAV2VEC2_STREAM = StreamRule(("encoder", position_convolution), refusal=normalised_feature_encoder)
"""The rule of wav2vec 2.0 and of models with its modules."""
