"""Runs convolutions and feed-forward parts of audio models on chunks of a long sound, if no gradients are needed.

Intermediate tensors for a whole recording would take most of the memory. The first convolution of wav2vec 2.0, for
example, has 1,600 rows of 512 channels for each second of sound, which is 2 GB for five minutes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...engines.batch import in_graph
from ..family.audio_spec import Convolution, outputs_of
from ..family.definition import known_family

if TYPE_CHECKING:
    _Module: Any = nn.Module
else:
    _Module = object

FRAMES_PER_CHUNK = 512
"""Maximum frames per call of a feature encoder: ten seconds of sound, at most 70 MB in any layer."""
WINDOWS_OF_MOMENTS = 2**16
"""Maximum number of windows of samples at once, while their mean and covariance are computed
(:class:`NormalisedConvolution`). Untuned."""
FRAMES_PER_PRODUCT = 4096
"""Maximum frames per call of a feed-forward module."""


def needs_one_pass(module: nn.Module, states: Tensor) -> bool:
    """Whether ``module`` must compute its input ``states`` in one pass, because gradients are needed, or because a
    graph takes inputs of any length."""
    if in_graph():
        return True
    if not torch.is_grad_enabled():
        return False
    return states.requires_grad or any(parameter.requires_grad for parameter in module.parameters())


class InChunks(_Module):
    """Base class of mixins for modules that compute a long sound in chunks, to the same result as their base class.
    They do so under any attention implementation."""


class FeatureEncoderInChunks(InChunks):
    """Mixin before the feature encoder of wav2vec 2.0 or a successor. It is a chain of convolutions over samples,
    without padding.

    A norm over time after the first convolution (``feat_extract_norm="group"``) becomes part of that convolution's
    weights (:class:`NormalisedConvolution`).
    """

    conv_layers: Any
    training: bool
    _requires_grad: bool

    def forward(self, input_values: Tensor) -> Tensor:
        """The features ``(B, C, frames)`` of samples ``(B, N)``."""
        # in training, the base makes its input require gradients
        in_training = torch.is_grad_enabled() and self.training and self._requires_grad
        if in_training or needs_one_pass(self, input_values):
            return super().forward(input_values)
        convolutions = [convolution_of(layer) for layer in self.conv_layers]
        frames = outputs_of(convolutions, input_values.shape[1])
        if frames <= FRAMES_PER_CHUNK:
            return super().forward(input_values)
        # the first layer, with a norm over time as a part of its weights
        first, *others = self.conv_layers
        if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
            # weights that are sharded, wrapped or on another device can only be read while their module runs
            weights = [*first.conv.parameters(), *first.layer_norm.parameters()]
            readable = all(
                type(weight) is nn.Parameter and weight.device == input_values.device and weight.numel()
                for weight in weights
            )
            if not readable or type(first.conv) is not nn.Conv1d:
                return super().forward(input_values)
            first = NormalisedConvolution(first, input_values)
        # one chunk after another
        features = None
        for at, samples in chunks(input_values, convolutions, FRAMES_PER_CHUNK):
            states = first(samples[:, None])
            for layer in others:
                states = layer(states)
            if features is None:
                features = states.new_empty(*states.shape[:2], frames)
            features[:, :, at] = states
        assert features is not None
        return features


def convolution_of(layer: Any) -> Convolution:
    """The kernel size and stride of a layer of a feature encoder."""
    return Convolution(layer.conv.kernel_size[0], layer.conv.stride[0])


def chunks(inputs: Tensor, convolutions: Sequence[Convolution], size: int) -> Iterator[tuple[slice, Tensor]]:
    """Divide the outputs of unpadded convolutions into slices of up to ``size``. Yields each slice with the part
    ``(B, n)`` of ``inputs (B, N)`` on which these outputs depend."""
    total = outputs_of(convolutions, inputs.shape[1])
    stride = math.prod(convolution.stride for convolution in convolutions)
    for first in range(0, total, size):
        last = min(first + size, total)
        needed = last - first
        for convolution in reversed(convolutions):
            needed = (needed - 1) * convolution.stride + convolution.kernel
        yield slice(first, last), inputs[:, first * stride : first * stride + needed]


class NormalisedConvolution:
    """The first layer of a feature encoder: a convolution, and a norm of each channel over time. A call computes a
    chunk of the sounds ``samples (B, N)`` with which the instance was made.

    A channel with weights w and bias b maps a window u of K samples to ``w·u + b``. Over all windows of a sound, this
    has the mean ``w·mean(u) + b`` and the variance ``wᵀ Cov(u) w``. The normalised channel is therefore a convolution
    too, with weights and bias that depend on the sound.

    weight, bias: of this convolution, ``(B · C, 1, K)`` and ``(B · C,)``, with a group for each sound.
    """

    def __init__(self, layer: Any, samples: Tensor) -> None:
        """Compute the weights and biases of the normalised convolution for ``samples (B, N)``."""
        self.layer = layer
        self.dtype = samples.dtype
        norm = layer.layer_norm
        convolution = convolution_of(layer)
        weight = layer.conv.weight[:, 0].double()

        # mean (B, K) and covariance (B, K, K) of all windows, in float64; samples are centred, so that sums stay small
        centre = samples.double().mean(1, keepdim=True)
        count = convolution.outputs(samples.shape[1])
        total: Any = 0.0
        products: Any = 0.0
        for _, chunk in chunks(samples, [convolution], WINDOWS_OF_MOMENTS):
            windows = (chunk - centre).unfold(1, convolution.kernel, convolution.stride)
            total = total + windows.sum(1)
            products = products + windows.transpose(1, 2) @ windows
        mean = total / count
        covariance = products / count - mean[:, :, None] * mean[:, None]
        mean = mean + centre
        # the norm of channel c of sound b is  scale · (w·u - w·mean) + shift
        variance = torch.einsum("cj,bjk,ck->bc", weight, covariance, weight).clamp_min(0)
        scale = (variance + norm.eps).rsqrt()
        shift = torch.zeros_like(variance)
        if norm.affine:
            scale = scale * norm.weight
            shift = shift + norm.bias
        at_least = torch.promote_types(samples.dtype, torch.float32)
        self.weight = (scale[..., None] * weight).flatten(0, 1)[:, None].to(at_least)
        # the bias of the layer's convolution cancels, since it is also a part of the mean
        self.bias = (shift - scale * (mean @ weight.t())).flatten().to(at_least)

    def __call__(self, samples: Tensor) -> Tensor:
        """The features ``(B, C, n')`` of a chunk of samples ``(B, 1, n)``."""
        # one row of B channels, of which each group of the convolution takes one
        rows = samples.to(self.weight.dtype).transpose(0, 1)
        stride = self.layer.conv.stride
        states = nn.functional.conv1d(rows, self.weight, self.bias, stride, groups=len(samples))
        activated: Tensor = self.layer.activation(states.unflatten(1, (len(samples), -1))[0])
        return activated.to(self.dtype)


class FramesInChunks(InChunks):
    """Mixin before a module of the base that computes each frame independently."""

    training: bool

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The outputs ``(B, N, C')`` for hidden states ``(B, N, C)``."""
        if self.training or needs_one_pass(self, hidden_states) or hidden_states.shape[1] <= FRAMES_PER_PRODUCT:
            return super().forward(hidden_states)
        pieces = hidden_states.split(FRAMES_PER_PRODUCT, 1)
        return torch.cat([super(FramesInChunks, self).forward(piece) for piece in pieces], 1)


def run_in_chunks(model: nn.Module) -> None:
    """Make all audio models inside ``model``, with or without a Long class, compute long sounds in chunks. Changes
    ``model`` in place."""
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and (family := known_family(part.config)) is not None:
            replaced = getattr(family.mixin, "replaced", {})
            for module in part.modules():
                if issubclass(replaced.get(type(module), object), InChunks):
                    module.__class__ = replaced[type(module)]
