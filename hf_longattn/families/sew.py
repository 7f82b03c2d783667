"""LongSEW: Squeezed and Efficient Wav2vec (Wu et al. 2021), attention on means of two frames of 20 ms."""

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.models.sew.configuration_sew import SEWConfig
from transformers.models.sew.modeling_sew import SEWEncoder, SEWFeatureEncoder, SEWFeedForward, SEWUpsampling

from ..engines.common.plain import first_rows
from ..modeling.attach.custom_attention import replacing
from ..modeling.attach.stretches import FeatureEncoderInStretches, FramesInStretches
from ..modeling.classes import Family, long_config
from ..modeling.family.audio_config import LongAudioConfig
from ..modeling.family.audio_rule import AudioRule, convolved
from ..modeling.family.convolutions import Convolution, normalised_over_time, unpadded_convolutions


def squeezed(config: Any) -> list[Convolution]:
    """The feature encoder's convolutions, and the means of ``config.squeeze_factor`` frames, which the layers read."""
    return [*unpadded_convolutions(config), Convolution(config.squeeze_factor, config.squeeze_factor)]


FRAMES: ContextVar[Any] = ContextVar("longattn_sew_frames")
"""Number of frames that the encoder reads while a graph is exported. The graph may not compare it with the number of means."""


class LongSEWPool(nn.AvgPool1d):
    """AvgPool1d that computes its output length in an export. It uses the same arithmetic as the base's positions."""

    def forward(self, frames: Tensor) -> Tensor:
        """Means ``(B, D, N // size)`` of frames ``(B, D, N)``."""
        if not torch.compiler.is_exporting():
            return super().forward(frames)
        size = self.kernel_size if isinstance(self.kernel_size, int) else self.kernel_size[0]
        means = frames.shape[-1] // size
        return first_rows(frames, means * size).unflatten(-1, (means, size)).mean(-1)


class LongSEWUpsampling(SEWUpsampling):
    """SEWUpsampling that, in an export, returns as many frames as the encoder reads."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Frames ``(B, n · squeeze_factor, D)`` of means ``(B, n, D)``. In an export, also the zero frames that the base appends."""
        if not torch.compiler.is_exporting():
            return super().forward(hidden_states)
        parts = self.activation(self.projection(hidden_states)).unflatten(-1, (self.squeeze_factor, -1))
        frames = torch.arange(FRAMES.get(), device=parts.device)
        return pad(parts, (0, 0, 0, 0, 0, 1))[:, frames // self.squeeze_factor, frames % self.squeeze_factor]


class LongSEWEncoder(SEWEncoder):
    """SEWEncoder that sets :data:`FRAMES` in an export."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_exporting():
            return super().forward(hidden_states, *args, **kwargs)
        before = FRAMES.set(hidden_states.shape[1])
        try:
            return super().forward(hidden_states, *args, **kwargs)
        finally:
            FRAMES.reset(before)


def why_padding_changes(config: Any) -> str:
    """Why a sound padded in a batch has other frames than alone, as a clause. Empty if it does not."""
    means = f"the last of its means of {config.squeeze_factor} frames may have padding in it"
    return normalised_over_time(config) or (means if config.squeeze_factor > 1 else "")


FAMILY = Family(
    long_config(__name__, LongAudioConfig, SEWConfig, context_frames=256),
    mixin=replacing(
        __name__,
        {
            nn.AvgPool1d: LongSEWPool,
            SEWEncoder: LongSEWEncoder,
            SEWFeatureEncoder: FeatureEncoderInStretches,
            SEWFeedForward: FramesInStretches,
            SEWUpsampling: LongSEWUpsampling,
        },
    ),
    rule=AudioRule(
        front=squeezed,
        outputs=convolved,
        why_chunks_differ=normalised_over_time,
        why_padding_changes=why_padding_changes,
    ),
)
