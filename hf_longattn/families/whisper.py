"""LongWhisper: Whisper (Radford et al. 2022), with an encoder for sounds of any length.

The base's encoder reads exactly 30 seconds, but its sinusoidal positions can be continued. The decoder, with full
attention and a position table, is unchanged."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import dropout, gelu
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.configuration_whisper import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperForConditionalGeneration, sinusoids
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..configuration import LongAttentionConfig
from ..errors import InputError
from ..modeling.classes import Family
from ..modeling.family.audio_spec import AudioSpec, Convolution, LongAudioConfig
from ..names import require

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Base
else:
    _Base = object

ROWS_PER_FRAME = 2
"""Stride of the second convolution: rows of a spectrogram per frame."""
ROWS_PER_SECOND = 100
"""Rows of a spectrogram per second."""


class LongWhisperConfig(LongAudioConfig, WhisperConfig):
    """WhisperConfig with ``long_attention`` of the encoder. The decoder has full attention.

    max_source_positions: the number of rows of the encoder's position table, as in the base.
    """

    model_type = "long_whisper"

    @property
    def decoder_attention(self) -> LongAttentionConfig:
        return LongAttentionConfig("full")


@dataclass(frozen=True)
class WhisperSpec(AudioSpec):
    """Spectrograms ``(B, mel bins, rows)``. The base reads only the number of rows for which its table has
    positions."""

    def trained_seconds(self, config: Any) -> float:
        return float(config.max_source_positions * ROWS_PER_FRAME / ROWS_PER_SECOND)

    def converted_seconds(self, seconds: float) -> float:
        """``seconds`` rounded up, since the feature extractor cuts and pads to whole seconds."""
        return math.ceil(seconds)

    def check(self, config: Any, arguments: Mapping[str, Any], *, values: bool = True) -> None:
        """Check the shape of the spectrograms and then as the base class, but without the mask, since the encoder
        reads padding as silence."""
        sound = arguments.get(self.input)
        if sound is None:
            return
        if sound.dim() != 3 or sound.shape[1] != config.num_mel_bins:
            raise InputError(
                f"{self.input} has shape {tuple(sound.shape)}, but must be (batch, {config.num_mel_bins} mel bins, "
                "rows) as the model's feature extractor makes it."
            )
        super().check(config, {self.input: self.as_input(sound)}, values=values)


class EncoderOfAnyLength(WhisperEncoder):
    """WhisperEncoder without the check that the input has 30 seconds."""

    @merge_with_config_defaults
    @capture_outputs
    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> BaseModelOutput:
        """States ``(B, frames, D)`` of ``input_features (B, mel bins, rows)``. As in the base, the mask is not
        read."""
        states = gelu(self.conv2(gelu(self.conv1(input_features)))).mT.contiguous()  # rows contiguous in memory
        states = dropout(states + positions(self.embed_positions.weight, states.shape[1]), self.dropout, self.training)
        for layer in self.layers:
            if not (self.training and self.layerdrop and torch.rand([]) < self.layerdrop):
                states = layer(states, None, **kwargs)
        return BaseModelOutput(last_hidden_state=self.layer_norm(states))


def positions(table: Tensor, frames: int) -> Tensor:
    """Positions ``(frames, D)``: the rows of ``table``, which is not trained, then further sinusoids."""
    table = table.detach()
    rows, width = table.shape
    if frames <= rows:
        return table[:frames]
    return torch.cat([table, sinusoids(frames, width)[rows:].to(table)])


class WhisperOfAnyLength(_Base):
    """Makes the encoder read sounds of any length, and ``generate`` read segments of ``long_audio_seconds``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        require("overridden_methods")
        if issubclass(cls, WhisperForConditionalGeneration):
            cls.generate = _in_longer_segments(cls.generate)

    def call_base(self, base_forward: Any, arguments: dict[str, Any]) -> Any:
        if isinstance(self, WhisperEncoder):
            base_forward = EncoderOfAnyLength.forward
        return super().call_base(base_forward, arguments)

    def _prepare_decoder_input_ids_for_generation(
        self, *, model_kwargs: dict[str, Any], **others: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Return a prompt unchanged, as transformers does for the base by its model type."""
        if "decoder_input_ids" in model_kwargs:
            return model_kwargs.pop("decoder_input_ids"), model_kwargs
        return super()._prepare_decoder_input_ids_for_generation(model_kwargs=model_kwargs, **others)


def _in_longer_segments(generate: Any) -> Any:
    """Wrap ``generate`` so that its segments have ``long_audio_seconds`` instead of ``max_source_positions``
    frames."""

    @functools.wraps(generate)
    def generate_in_longer_segments(self: Any, *args: Any, **kwargs: Any) -> Any:
        seconds = self.config.long_audio_seconds
        if seconds is None:
            return generate(self, *args, **kwargs)
        longer = copy.copy(self)  # a shallow copy: the same modules, another config
        longer.config = copy.copy(self.config)
        longer.config.max_source_positions = SPEC.frames(self.config, SPEC.length(SPEC.converted_seconds(seconds)))
        return generate(longer, *args, **kwargs)

    return generate_in_longer_segments


def extractor_fields(seconds: float) -> Mapping[str, Any]:
    """Fields that make WhisperFeatureExtractor cut and pad sounds to ``seconds``, rounded up."""
    chunk = int(SPEC.converted_seconds(seconds))
    return {"chunk_length": chunk, "n_samples": chunk * SPEC.sampling_rate, "nb_max_frames": chunk * ROWS_PER_SECOND}


def why_train(config: Any, head: str) -> str:
    """Why a model with a decoder needs training for longer sounds, as a clause. Empty for other heads."""
    if not head.endswith("ForConditionalGeneration"):
        return ""
    return (
        f"the decoder was trained to write what is said in {SPEC.trained_seconds(config):g} seconds, in "
        f"{config.max_target_positions} "
        "tokens at most and with timestamps up to there"
    )


SPEC = WhisperSpec(
    input="input_features",
    rate=ROWS_PER_SECOND,
    features=lambda config: config.num_mel_bins,
    time_axis=2,
    front=lambda config: [Convolution(3, 1, 1, 1), Convolution(3, ROWS_PER_FRAME, 1, 1)],
    positions="sinusoids",
    reads_longer=False,
    extractor_fields=extractor_fields,
    why_train=why_train,
    why_padding_changes=lambda config: "the encoder reads padding as silence, without a mask",
)
FAMILY = Family(
    LongWhisperConfig,
    classes=("WhisperForAudioClassification", "WhisperForConditionalGeneration", "WhisperModel"),
    mixin=WhisperOfAnyLength,
    spec=SPEC,
)
