"""LongWav2Vec2: wav2vec 2.0 (Baevski et al. 2020), frames of 20 ms by convolutions over samples, positions by one over frames."""

from transformers.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2FeatureEncoder, Wav2Vec2FeedForward

from ..modeling.attach.custom_attention import replacing
from ..modeling.attach.stretches import FeatureEncoderInStretches, FramesInStretches
from ..modeling.classes import lazy_classes
from ..modeling.family.audio_config import LongAudioConfig
from ..modeling.family.audio_rule import AudioRule, adapted
from ..modeling.family.definition import Family, long_config
from ..modeling.family.stream_rule import WAV2VEC2_STREAM, normalised_over_time

FAMILY = Family(
    long_config(__name__, LongAudioConfig, Wav2Vec2Config),
    mixin=replacing(__name__, {Wav2Vec2FeatureEncoder: FeatureEncoderInStretches, Wav2Vec2FeedForward: FramesInStretches}),
    rule=AudioRule(
        outputs=adapted, why_chunks_differ=normalised_over_time, why_padding_changes=normalised_over_time, stream=WAV2VEC2_STREAM
    ),
)

__getattr__ = lazy_classes(FAMILY, globals())
