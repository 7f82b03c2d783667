"""Parts of models of sound that look a bounded way along time, computed in stretches of a long sound where no gradients are wanted.

Their temporaries for a whole recording are what takes most memory: the convolutions of wav2vec 2.0 over samples have 1,600 rows of 512
channels for each second of sound, which is 2 GB after the first convolution for five minutes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...engines.common.batch import in_graph
from ..family.stream_rule import Chain, Convolution

if TYPE_CHECKING:
    _Module: Any = nn.Module
else:
    _Module = object

FRAMES_PER_STRETCH = 512
"""Frames of a feature encoder that are computed at a time: ten seconds of sound, of which no layer has more than 70 MB."""
ROWS_OF_NORM = 64 * FRAMES_PER_STRETCH
"""Rows of a first convolution of which the mean and variance over time are computed at a time, as many as a stretch has."""
FRAMES_PER_PRODUCT = 4096
"""Frames of a feed-forward module that are computed at a time."""


def needs_one_pass(module: nn.Module, states: Tensor) -> bool:
    """Whether ``module`` has to compute ``states`` at once: for gradients, and in a graph for any length, before that is looked at."""
    if in_graph():
        return True
    if not torch.is_grad_enabled():
        return False
    return states.requires_grad or any(parameter.requires_grad for parameter in module.parameters())


class FeatureEncoderInStretches(_Module):
    """Comes before the feature encoder of wav2vec 2.0 or a successor: convolutions over samples without padding, one after the other.

    A first convolution with a norm over time (``feat_extract_norm="group"``) is computed twice: for its mean and variance over the whole
    sound, and for the frames.
    """

    conv_layers: Any
    training: bool
    _requires_grad: bool

    def forward(self, input_values: Tensor) -> Tensor:
        """Samples ``(B, N)`` to features ``(B, C, frames)``."""
        recorded = torch.is_grad_enabled() and self.training and self._requires_grad  # the base wants gradients of its input then
        if recorded or needs_one_pass(self, input_values):
            return super().forward(input_values)
        convolutions = [convolution_of(layer) for layer in self.conv_layers]
        frames = Chain(tuple(convolutions)).total(input_values.shape[1])
        if frames <= FRAMES_PER_STRETCH:
            return super().forward(input_values)
        first, *others = self.conv_layers
        norm = getattr(first, "layer_norm", None)
        over_time = norm_over_time(first, input_values) if isinstance(norm, nn.GroupNorm) else None
        features = None
        for at, samples in stretches(input_values, convolutions, FRAMES_PER_STRETCH):
            states = first(samples[:, None]) if over_time is None else first.activation(over_time(first.conv(samples[:, None])))
            for layer in others:
                states = layer(states)
            if features is None:
                features = states.new_empty(*states.shape[:2], frames)
            features[:, :, at] = states
        assert features is not None
        return features


def convolution_of(layer: Any) -> Convolution:
    """How far a layer of a feature encoder looks."""
    return Convolution(layer.conv.kernel_size[0], layer.conv.stride[0])


def stretches(inputs: Tensor, convolutions: Sequence[Convolution], size: int) -> Iterator[tuple[slice, Tensor]]:
    """Where ``size`` outputs of convolutions without padding stand, and the inputs ``(B, n)`` of ``inputs (B, N)`` on which they depend."""
    chain = Chain(tuple(convolutions))
    total = chain.total(inputs.shape[1])
    for first in range(0, total, size):
        last = min(first + size, total)
        needed = last - first
        for convolution in reversed(convolutions):
            needed = (needed - 1) * convolution.stride + convolution.kernel
        yield slice(first, last), inputs[:, first * chain.stride : first * chain.stride + needed]


class NormOverTime:
    """``nn.GroupNorm`` with a group for each channel, by the mean and variance ``(B, C, 1)`` of the whole sound."""

    def __init__(self, norm: nn.GroupNorm, mean: Tensor, variance: Tensor) -> None:
        scale = (variance + norm.eps).rsqrt()
        shift = -mean * scale
        if norm.weight is not None:
            scale, shift = scale * norm.weight[:, None], shift * norm.weight[:, None] + norm.bias[:, None]
        self.dtype = mean.dtype if norm.weight is None else norm.weight.dtype
        at_least = torch.promote_types(self.dtype, torch.float32)
        self.scale, self.shift = scale.to(at_least), shift.to(at_least)

    def __call__(self, states: Tensor) -> Tensor:
        return torch.addcmul(self.shift, states.to(self.scale.dtype), self.scale).to(self.dtype)


def norm_over_time(layer: Any, samples: Tensor) -> NormOverTime:
    """The norm of the convolution ``layer`` over the whole of ``samples (B, N)``, whose moments are added in float64."""
    count, mean, squares = 0, torch.zeros((), device=samples.device), torch.zeros((), device=samples.device)
    for at, stretch in stretches(samples, [convolution_of(layer)], ROWS_OF_NORM):
        states = layer.conv(stretch[:, None])
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        added = at.stop - at.start
        variance, centre = (moment.double() for moment in torch.var_mean(states, 2, correction=0, keepdim=True))
        difference = centre - mean
        mean = mean + difference * (added / (count + added))
        squares = squares + variance * added + difference.square() * (count * added / (count + added))
        count += added
    return NormOverTime(layer.layer_norm, mean, squares / count)


class FramesInStretches(_Module):
    """Comes before a module of the base that computes each frame alone."""

    training: bool

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(B, N, C)`` to ``(B, N, C')``."""
        if self.training or needs_one_pass(self, hidden_states) or hidden_states.shape[1] <= FRAMES_PER_PRODUCT:
            return super().forward(hidden_states)
        return torch.cat([super(FramesInStretches, self).forward(stretch) for stretch in hidden_states.split(FRAMES_PER_PRODUCT, 1)], 1)
