"""LongParakeetEncoder: NVIDIA's FastConformer (Rekesh et al. 2023), frames of 80 ms, with Transformer-XL's relative positions.

The base passes a bias for all query-key pairs to attention, and a mask of frames × frames to the layers. Here the mechanism computes the
bias as a score term by query and distance, and layers get only the padding. NeMo's ``att_context_size=[128, 128]`` is the window
``left=128, right=128``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers.models.parakeet.configuration_parakeet import ParakeetEncoderConfig
from transformers.models.parakeet.modeling_parakeet import (
    ParakeetEncoderAttention,
    ParakeetEncoderConvolutionModule,
    ParakeetEncoderFeedForward,
    ParakeetEncoderRelPositionalEncoding,
    ParakeetEncoderSubsamplingConv2D,
)

from ..engines.common.score_terms import DistanceTerm
from ..mechanisms.common.locality import largest_distances
from ..modeling.attach.custom_attention import OnTheBackend, attend_by_mechanism, by_head
from ..modeling.attach.frame_padding import FramePadding
from ..modeling.attach.stretches import FramesInStretches, InStretches, needs_one_pass
from ..modeling.classes import Family
from ..modeling.family.audio_config import LongAudioConfig
from ..modeling.family.audio_rule import AudioRule, encoder_config, normalised_features
from ..modeling.family.config import runs_mechanisms
from ..modeling.family.convolutions import Convolution

ROWS_PER_STRETCH = 4096
"""Maximum feature rows per call of the subsampling convolutions without gradients. One call for an hour of sound would take 15 GB."""
IN_STRETCHES = (3, 2)
"""The only kernel and stride for which convolutions run in stretches: those of all published checkpoints."""


class LongParakeetEncoderConfig(LongAudioConfig, ParakeetEncoderConfig):
    """ParakeetEncoderConfig with ``long_attention``; by default NeMo's ``att_context_size=[128, 128]``."""

    model_type = "long_parakeet_encoder"
    context_frames = 128


class LongParakeetConvolution(ParakeetEncoderConvolutionModule):
    """ParakeetEncoderConvolutionModule that takes a padding mask instead of one of frames × frames."""

    def forward(self, hidden_states: Tensor, attention_mask: Any = None) -> Tensor:
        if isinstance(attention_mask, FramePadding):
            attention_mask = None if attention_mask.mask is None else attention_mask.frames[:, None, None]
        return super().forward(hidden_states, attention_mask)


class LongParakeetSubsampling(InStretches, ParakeetEncoderSubsamplingConv2D):
    """ParakeetEncoderSubsamplingConv2D that computes long inputs in stretches if no gradients are needed.

    A frame depends on 2 f - 1 rows if f rows make a frame. So each later stretch starts f rows early, and its first frame is dropped.
    """

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        rows, factor = input_features.shape[1], self.stride**self.num_layers
        usual = (self.kernel_size, self.stride) == IN_STRETCHES
        if not usual or needs_one_pass(self, input_features) or rows <= ROWS_PER_STRETCH:
            return super().forward(input_features, attention_mask)
        size = ROWS_PER_STRETCH // factor * factor
        stretches = []
        for first in range(0, rows, size):
            at = slice(max(0, first - factor), first + size)
            mask = None if attention_mask is None else attention_mask[:, at]
            stretches.append(super().forward(input_features[:, at], mask)[:, int(first > 0) :])
        return torch.cat(stretches, 1)


class LongParakeetAttention(ParakeetEncoderAttention):
    """The projections of ParakeetEncoderAttention with the mechanism."""

    long_attention: Any

    def forward(
        self, hidden_states: Tensor, position_embeddings: Tensor | None, attention_mask: Any = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """``(B, N, C)`` and the weights, from hidden states, positions and :class:`FramePadding`. The first two are ``(B, N, C)`` and ``(1,
        2 N - 1, C)``."""
        if not runs_mechanisms(self) or position_embeddings is None:
            return super().forward(hidden_states, position_embeddings, attention_mask, **kwargs)
        query, key, value = by_head(hidden_states, self.head_dim, self.q_proj, self.k_proj, self.v_proj)
        back, ahead = largest_distances(self.long_attention, query.shape[2], key.shape[2], False)
        middle = position_embeddings.shape[1] // 2
        near = position_embeddings[0, middle - back : middle + ahead + 1].flip(0)  # positions of the distances -ahead, …, back
        table = self.relative_k_proj(near).unflatten(-1, (-1, self.head_dim)).transpose(0, 1)
        term = DistanceTerm((query + self.bias_v[:, None]) * self.scaling, table, ahead, key)
        mask, how = None if attention_mask is None else attention_mask.mask, {"scaling": self.scaling, "dropout": self.attention_dropout}
        output, weights = attend_by_mechanism(self, query + self.bias_u[:, None], key, value, mask, position_bias=term, **how, **kwargs)
        return self.o_proj(output), weights


class LongParakeetPositions(ParakeetEncoderRelPositionalEncoding):
    """ParakeetEncoderRelPositionalEncoding that computes only distances that a layer sees, the same for all batch rows."""

    attending: tuple[Any, ...]  # the attention modules of all layers

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``(1, 2 n - 1, C)`` for the visible distances, n - 1 to 1 - n. With other attention implementations, ``(B, 2 N - 1, C)``."""
        if runs_mechanisms(self):
            length = hidden_states.shape[1]
            furthest = max(max(largest_distances(attention.long_attention, length, length, False)) for attention in self.attending)
            hidden_states = hidden_states[:1, : furthest + 1]
        return super().forward(hidden_states, *args, **kwargs)


class ParakeetOnTheBackend(OnTheBackend):
    """Replaces modules of the base."""

    replaced = {
        ParakeetEncoderAttention: LongParakeetAttention,
        ParakeetEncoderConvolutionModule: LongParakeetConvolution,
        ParakeetEncoderFeedForward: FramesInStretches,
        ParakeetEncoderRelPositionalEncoding: LongParakeetPositions,
        ParakeetEncoderSubsamplingConv2D: LongParakeetSubsampling,
    }

    def adapt_module(self, name: str, module: Any) -> None:
        if isinstance(module, LongParakeetPositions):
            module.attending = tuple(layer.self_attn for layer in self.layers)

    def _get_output_attention_mask(self, attention_mask: Tensor, target_length: int | None = None) -> Any:
        frames = super()._get_output_attention_mask(attention_mask, target_length)
        return FramePadding.of(frames) if runs_mechanisms(self) else frames


def subsampling(config: Any) -> list[Convolution]:
    """The convolutions from rows of features to frames."""
    kernel, stride = encoder_config(config).subsampling_conv_kernel_size, encoder_config(config).subsampling_conv_stride
    padding = (kernel - 1) // 2
    return [Convolution(kernel, stride, padding, padding)] * int(math.log2(encoder_config(config).subsampling_factor))


FAMILY = Family(
    LongParakeetEncoderConfig,
    classes=("ParakeetEncoder",),
    mixin=ParakeetOnTheBackend,
    rule=AudioRule(
        input="input_features",
        rate=100,
        features=lambda config: int(encoder_config(config).num_mel_bins),
        front=subsampling,
        positions="relative",
        why_chunks_differ=normalised_features,
    ),
)
"""The model's input is 100 rows of log-mel features per second. Eight rows make a frame."""
