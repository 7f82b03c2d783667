"""LongWav2Vec2: wav2vec 2.0 (Baevski et al. 2020), frames of 20 ms by convolutions over samples, positions by one over frames."""

from transformers.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2FeatureEncoder, Wav2Vec2FeedForward

from ..modeling.attach.sound_chunks import in_chunks
from ..modeling.classes import Family, long_config
from ..modeling.family.audio_config import LongAudioConfig
from ..modeling.family.audio_spec import WAV2VEC2

FAMILY = Family(
    long_config(__name__, LongAudioConfig, Wav2Vec2Config),
    mixin=in_chunks(__name__, Wav2Vec2FeatureEncoder, Wav2Vec2FeedForward),
    spec=WAV2VEC2,
)
