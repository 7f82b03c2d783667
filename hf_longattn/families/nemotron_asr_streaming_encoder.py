"""LongNemotronAsrStreamingEncoder: NVIDIA's cache-aware FastConformer (Noroozi et al. 2024), whose frames see their chunk and some
chunks before it. transformers builds a mask and a bias of frames × frames. Here the mechanism is ``chunked`` with a score term by query and
distance, for sounds of any length. Streaming caches work only in the base's attention: ``model.use_base_attention()``."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.models.nemotron_asr_streaming.configuration_nemotron_asr_streaming import NemotronAsrStreamingEncoderConfig
from transformers.models.nemotron_asr_streaming.modeling_nemotron_asr_streaming import (
    NemotronAsrStreamingEncoder,
    NemotronAsrStreamingEncoderAttention,
    NemotronAsrStreamingEncoderBlock,
    NemotronAsrStreamingEncoderRelPositionalEncoding,
)

from ..cache_argument import CACHE
from ..configuration import LongAttentionConfig
from ..errors import BackendError
from ..modeling.attach.custom_attention import NearPositions, OnTheBackend
from ..modeling.attach.frame_padding import FramePadding
from ..modeling.classes import Family
from ..modeling.family.audio_config import LongAudioConfig
from ..modeling.family.audio_rule import AudioRule, encoder_config
from ..modeling.family.config import runs_mechanisms
from ..modeling.family.stream_rule import Convolution
from .parakeet_encoder import PARAKEET, STREAM, LongParakeetAttention

LOOKAHEAD, CACHES = "num_lookahead_tokens", (CACHE, "padding_cache", "use_cache")


def own_attention(config: Any) -> LongAttentionConfig:
    """The mechanism that equals an encoder's attention with this config, at its default lookahead."""
    config = encoder_config(config)
    chunk = config.default_num_lookahead_tokens + 1
    return LongAttentionConfig("chunked", chunk_size=chunk, left_chunks=(config.sliding_window - 1) // chunk)


class LongNemotronAsrStreamingEncoderConfig(LongAudioConfig, NemotronAsrStreamingEncoderConfig):
    """NemotronAsrStreamingEncoderConfig with ``long_attention``. By default a frame sees its chunk of ``default_num_lookahead_tokens`` + 1
    frames and as many chunks before it as fit into ``sliding_window``."""

    model_type = "long_nemotron_asr_streaming_encoder"


class LongNemotronAttention(NemotronAsrStreamingEncoderAttention):
    """The projections of NemotronAsrStreamingEncoderAttention, the same as in Parakeet, with the mechanism."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Tensor | None,
        attention_mask: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """``(B, N, C)`` and the weights, from hidden states, positions and padding. These are ``(B, N, C)``, ``(1, 2 N - 1, C)`` and ``(B,
        1, 1, N)``."""
        if not runs_mechanisms(self):
            return super().forward(hidden_states, position_embeddings, attention_mask, **kwargs)
        padding = FramePadding.of(attention_mask[:, 0, 0])
        attend: Any = LongParakeetAttention.forward
        return attend(self, hidden_states, position_embeddings, padding, **kwargs)


class LongNemotronBlock(NemotronAsrStreamingEncoderBlock):
    """NemotronAsrStreamingEncoderBlock that also reads the additive mask of eager attention, 0 = visible. transformers' block takes every
    mask for a boolean one, in which 0 is hidden."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, all_masked_rows: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        if attention_mask is not None and attention_mask.is_floating_point():
            seen = attention_mask == 0
            all_masked_rows = ~seen.any(-1)
            attention_mask = seen | all_masked_rows[..., None]  # rows of padding: all visible, so that their states are finite
        states: Tensor = super().forward(hidden_states, attention_mask, all_masked_rows, **kwargs)
        return states


class NemotronOnTheBackend(OnTheBackend):
    """Replaces modules of the base. The encoder passes its layers a 4-D mask ``(B, 1, 1, N)``. From such a mask transformers builds no
    mask of frames × frames."""

    replaced = {
        NemotronAsrStreamingEncoderAttention: LongNemotronAttention,
        NemotronAsrStreamingEncoderBlock: LongNemotronBlock,
        NemotronAsrStreamingEncoderRelPositionalEncoding: NearPositions,
    }

    def adapt_module(self, name: str, module: Any) -> None:
        if isinstance(module, NearPositions):
            module.attending = tuple(layer.self_attn for layer in self.layers)
            module.max_position_embeddings = sys.maxsize  # sinusoids limit no length

    @property
    def _hands_padding_down(self) -> bool:
        return isinstance(self, NemotronAsrStreamingEncoder) and runs_mechanisms(self)

    def _get_output_attention_mask(self, attention_mask: Tensor, target_length: int | None = None) -> Tensor:
        frames: Tensor = super()._get_output_attention_mask(attention_mask, target_length)
        return frames[:, None, None] if self._hands_padding_down else frames

    def call_base(self, base_forward: Any, arguments: dict[str, Any]) -> Any:
        if not self._hands_padding_down:
            return super().call_base(base_forward, arguments)
        self._refuse_streams(arguments)
        sound, masked = arguments.get("input_features"), arguments.get("attention_mask") is not None
        arguments[LOOKAHEAD] = self.config.default_num_lookahead_tokens
        if not masked and isinstance(sound, Tensor) and sound.dim() > 1:
            arguments["attention_mask"] = torch.ones(sound.shape[:2], dtype=torch.long, device=sound.device)
        outputs = super().call_base(base_forward, arguments)
        if not isinstance(outputs, tuple) and outputs.attention_mask is not None:
            outputs.attention_mask = outputs.attention_mask[:, 0, 0] if masked else None
        return outputs

    def _refuse_streams(self, arguments: dict[str, Any]) -> None:
        lookahead, default = arguments.get(LOOKAHEAD), self.config.default_num_lookahead_tokens
        if lookahead not in (None, default):
            raise BackendError(
                f"{LOOKAHEAD}={lookahead} was given, but what a frame sees is the mechanism's, which was made for {default}; load the "
                f"model with default_num_lookahead_tokens={lookahead}, or call model.use_base_attention()."
            )
        if any(arguments.get(name) for name in CACHES):
            raise BackendError(
                f"{type(self).__name__} keeps no caches of a stream; call model.use_base_attention() for those of the base, or leave "
                f"{next(name for name in CACHES if arguments.get(name))} out."
            )


def subsampling(config: Any) -> list[Convolution]:
    """The convolutions from rows of features to frames. They only look back, except that zeros follow the last row."""
    config = encoder_config(config)
    kernel, stride = config.subsampling_conv_kernel_size, config.subsampling_conv_stride
    return [Convolution(kernel, stride, kernel - 1, stride - 1)] * int(math.log2(config.subsampling_factor))


def convolution_module(config: Any) -> list[Convolution]:
    """The convolution over frames that every layer contains."""
    return [Convolution.causal(encoder_config(config).conv_kernel_size)]


class NemotronRule(AudioRule):
    """Sounds of any length. The base itself reads at most ``max_position_embeddings`` frames."""

    def base_reads(self, config: Any, seconds: float) -> bool:
        return self.frames(config, self.length(seconds)) <= encoder_config(config).max_position_embeddings


NEMOTRON = NemotronRule(**{**vars(PARAKEET), "front": subsampling, "stream": replace(STREAM, inside=convolution_module)})
"""Parakeet's rule, with convolutions that only look back."""
FAMILY = Family(
    LongNemotronAsrStreamingEncoderConfig,
    classes=("NemotronAsrStreamingEncoder",),
    mixin=NemotronOnTheBackend,
    own_attention=own_attention,
    rule=NEMOTRON,
)
