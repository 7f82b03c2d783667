"""LongWav2Vec2: wav2vec 2.0 (Baevski et al. 2020), frames of 20 ms by convolutions over samples, positions by one over frames."""

from transformers.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2FeatureEncoder, Wav2Vec2FeedForward

from ..modeling.attach.stretches import in_stretches
from ..modeling.classes import Family, long_config
from ..modeling.family.audio_config import LongAudioConfig
from ..modeling.family.audio_rule import WAV2VEC2

FAMILY = Family(
    long_config(__name__, LongAudioConfig, Wav2Vec2Config),
    mixin=in_stretches(__name__, Wav2Vec2FeatureEncoder, Wav2Vec2FeedForward),
    rule=WAV2VEC2,
)
