"""LongMoonshineStreaming: Moonshine for live speech. Each encoder layer sees a window of frames, longer to the left than to the right.
transformers builds a mask of frames × frames for each layer, and drops the windows if no ``attention_mask`` is given. Here they are the
mechanism ``window``, with or without a mask. The decoder is unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.models.moonshine_streaming.configuration_moonshine_streaming import (
    MoonshineStreamingConfig,
    MoonshineStreamingEncoderConfig,
)
from transformers.models.moonshine_streaming.modeling_moonshine_streaming import (
    MoonshineStreamingEncoder,
    MoonshineStreamingEncoderAttention,
    MoonshineStreamingEncoderEmbedder,
)

from ..configuration import LongAttentionConfig
from ..errors import AudioError
from ..modeling.attach.custom_attention import ReplacedModules
from ..modeling.attach.frame_padding import FramePadding
from ..modeling.classes import Family
from ..modeling.family.audio_config import LongAudioConfig
from ..modeling.family.audio_rule import AudioRule, encoder_config
from ..modeling.family.config import BASE_ATTENTION, FullDecoder, runs_mechanisms
from ..modeling.family.held_encoder import LongHeldEncoderConfig
from ..modeling.family.stream_rule import Convolution, StreamRule


def own_attention(config: Any) -> LongAttentionConfig:
    """The mechanisms that equal an encoder's windows. In the window ``(16, 4)`` a frame sees itself, 15 before it and 3 after it."""
    config = encoder_config(config)
    windows = [{"left": left - 1, "right": max(0, right - 1)} for left, right in config.sliding_windows[: config.num_hidden_layers]]
    return LongAttentionConfig("window", layers={at: window for at, window in enumerate(windows) if window != windows[0]}, **windows[0])


CONVOLVED = 5
"""Kernel size, in rows, of the two convolutions in transformers' embedder."""


class LongMoonshineStreamingEncoderConfig(LongAudioConfig, MoonshineStreamingEncoderConfig):
    """MoonshineStreamingEncoderConfig with ``long_attention``; by default the windows of ``sliding_windows``."""

    model_type = "long_moonshine_streaming_encoder"
    decoder_positions: ClassVar[int | None] = None

    @property
    def _own_attention(self) -> LongAttentionConfig:
        return own_attention(self)


class LongMoonshineStreamingConfig(FullDecoder, LongHeldEncoderConfig, MoonshineStreamingConfig):
    """MoonshineStreamingConfig with ``long_attention`` of the encoder; by default the windows of ``sliding_windows``."""

    model_type = "long_moonshine_streaming"
    encoder_class = LongMoonshineStreamingEncoderConfig
    encoder_fields: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        vars(self.encoder_config)["decoder_positions"] = self.max_position_embeddings

    @property
    def attending(self) -> tuple[int, bool]:
        return self.encoder_config.num_hidden_layers, False


class LongMoonshineStreamingEmbedder(MoonshineStreamingEncoderEmbedder):
    """MoonshineStreamingEncoderEmbedder that returns a 4-D mask. From such a mask transformers builds no mask of frames × frames."""

    config: Any

    def forward(self, input_values: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Frames ``(B, F, D)`` of samples ``(B, N)``, and the mask ``(B, 1, 1, F)``. ``(B, F)`` for other attention implementations."""
        states, frames = super().forward(input_values, padding_mask)
        if frames is None or not runs_mechanisms(self):
            return states, frames
        return states, frames[:, None, None]


class LongMoonshineStreamingAttention(MoonshineStreamingEncoderAttention):
    """MoonshineStreamingEncoderAttention for the mask of :class:`LongMoonshineStreamingEmbedder`."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        if attention_mask is not None and runs_mechanisms(self):
            attention_mask = FramePadding.of(attention_mask[:, 0, 0]).mask
        return super().forward(hidden_states, attention_mask, **kwargs)


class MoonshineWithWindows(ReplacedModules):
    """Replaces modules of the base."""

    replaced = {
        MoonshineStreamingEncoderAttention: LongMoonshineStreamingAttention,
        MoonshineStreamingEncoderEmbedder: LongMoonshineStreamingEmbedder,
    }

    def call_base(self, base_forward: Any, arguments: dict[str, Any]) -> Any:
        if not isinstance(self, MoonshineStreamingEncoder):
            return super().call_base(base_forward, arguments)
        plain = vars(self.config).get(BASE_ATTENTION) or runs_mechanisms(self)
        if not plain and arguments.get("attention_mask") is None:  # without a mask, the base drops its windows
            arguments["attention_mask"] = torch.ones_like(arguments["input_values"], dtype=torch.long)
        outputs = super().call_base(base_forward, arguments)
        if isinstance(outputs, tuple):
            return tuple(entry[:, 0, 0] if isinstance(entry, Tensor) and entry.dim() == 4 else entry for entry in outputs)
        if outputs.attention_mask is not None and outputs.attention_mask.dim() == 4:
            outputs.attention_mask = outputs.attention_mask[:, 0, 0]
        return outputs


def samples_per_row(config: Any) -> int:
    """Number of samples in a row of the embedder's input."""
    return round(encoder_config(config).sample_rate * encoder_config(config).frame_ms / 1000)


def front(config: Any) -> list[Convolution]:
    """The step from samples to rows, and two convolutions. Each of these halves the number of rows."""
    row = samples_per_row(config)
    return [Convolution(row, row), *[Convolution.causal(CONVOLVED, 2)] * 2]


def positions_of_decoder(config: Any) -> int:
    """Number of frames for which the decoder has positions."""
    return int(getattr(config, "decoder_positions", None) or config.max_position_embeddings)


@dataclass(frozen=True)
class MoonshineRule(AudioRule):
    """Samples, padded to whole rows as by the processor, with a mask. Without a mask, the base drops its windows."""

    def multiple(self, config: Any) -> int:
        return samples_per_row(config)

    def arguments(self, sound: Tensor, lengths: list[int] | None = None) -> dict[str, Any]:
        return super().arguments(sound, [sound.shape[1]] * len(sound) if lengths is None else lengths)

    def check(self, config: Any, arguments: Mapping[str, Any], *, values: bool = True) -> None:
        super().check(config, arguments, values=values)
        sound, row = arguments.get(self.input), self.multiple(config)
        if sound is not None and sound.shape[1] % row:
            raise AudioError(
                f"The sound has {sound.shape[1]} samples, which is not a multiple of the {row} that make a row; pad it with zeros, as the "
                f"feature extractor does with pad_to_multiple_of={row}."
            )


FAMILY = Family(
    LongMoonshineStreamingConfig,
    inner=("MoonshineStreamingEncoder",),
    classes=("MoonshineStreamingModel", "MoonshineStreamingForConditionalGeneration"),
    mixin=MoonshineWithWindows,
    own_attention=own_attention,
    rule=MoonshineRule(
        front=front,
        longest=positions_of_decoder,
        stream=StreamRule(layers="layers", multiple=samples_per_row),
        why_padding_changes=lambda config: "its convolutions count a frame after the end, in which some rows are real, as sound",
    ),
)
