"""LongSEW: Squeezed and Efficient Wav2vec (Wu et al. 2021), attention on every second frame of 20 ms."""

from typing import Any

from transformers.models.sew.configuration_sew import SEWConfig
from transformers.models.sew.modeling_sew import SEWFeatureEncoder, SEWFeedForward

from ..modeling.attach.custom_attention import ReplacedModules
from ..modeling.attach.stretches import FeatureEncoderInStretches, FramesInStretches
from ..modeling.classes import lazy_classes
from ..modeling.family.audio_config import LongAudioConfig
from ..modeling.family.audio_rule import AudioRule, convolved
from ..modeling.family.definition import Family
from ..modeling.family.stream_rule import Convolution, normalised_over_time, unpadded_convolutions


class LongSEWConfig(LongAudioConfig, SEWConfig):
    """SEWConfig with ``long_attention``."""

    model_type = "long_sew"
    context_frames = 256


def squeezed(config: Any) -> list[Convolution]:
    """The feature encoder, and the means of ``config.squeeze_factor`` of its frames on which the layers run."""
    return [*unpadded_convolutions(config), Convolution(config.squeeze_factor, config.squeeze_factor)]


def why_padding_changes(config: Any) -> str:
    """Why a sound in a batch differs from the sound alone."""
    means = f"the last of its means of {config.squeeze_factor} frames may have padding in it"
    return normalised_over_time(config) or (means if config.squeeze_factor > 1 else "")


class LongSEWFeatureEncoder(FeatureEncoderInStretches, SEWFeatureEncoder):
    """SEWFeatureEncoder that computes long sounds in stretches."""


class LongSEWFeedForward(FramesInStretches, SEWFeedForward):
    """SEWFeedForward that computes long sounds in stretches."""


class SEWInStretches(ReplacedModules):
    """Replaces modules of the base by the classes above."""

    replaced = {SEWFeatureEncoder: LongSEWFeatureEncoder, SEWFeedForward: LongSEWFeedForward}


FAMILY = Family(
    LongSEWConfig,
    mixin=SEWInStretches,
    audio=AudioRule(
        front=squeezed,
        outputs=convolved,
        why_chunks_differ=normalised_over_time,
        why_padding_changes=why_padding_changes,
        no_stream=(
            "its published checkpoints normalise every channel over the whole sound (feat_extract_norm='group'); use a model with a norm "
            "over the channels of each frame, such as LongWav2Vec2ForCTC"
        ),
    ),
)

__getattr__ = lazy_classes(FAMILY, globals())
