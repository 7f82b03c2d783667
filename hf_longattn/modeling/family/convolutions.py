"""The convolutions along time of an audio model, from its input to its frames and over the frames themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Convolution:
    """Output t depends on ``kernel`` inputs from ``stride * t - left`` on.

    left, right: number of zeros before the first input and after the last one.
    """

    kernel: int
    stride: int = 1
    left: int = 0
    right: int = 0

    def outputs(self, inputs: int) -> int:
        """The number of outputs for this number of inputs."""
        return max(0, (inputs + self.left + self.right - self.kernel) // self.stride + 1) if inputs else 0


def outputs_of(convolutions: Sequence[Convolution], inputs: int) -> int:
    """The number of outputs of convolutions in sequence."""
    for convolution in convolutions:
        inputs = convolution.outputs(inputs)
    return inputs


def unpadded_convolutions(config: Any) -> list[Convolution]:
    """The convolutions of the feature encoder of wav2vec 2.0 and its successors."""
    return [Convolution(kernel, stride) for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True)]


def normalised_over_time(config: Any) -> str:
    """Why a feature encoder needs the whole sound: its norm is over time. Empty if the norm is over the channels of each frame."""
    if config.feat_extract_norm != "group":
        return ""
    return "its feature encoder normalises every channel over the whole sound (feat_extract_norm='group')"
