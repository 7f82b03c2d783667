"""LongUniSpeechSat: UniSpeech-SAT (Chen et al. 2021), HuBERT pre-trained to tell speakers apart."""

from transformers.models.unispeech_sat.configuration_unispeech_sat import UniSpeechSatConfig
from transformers.models.unispeech_sat.modeling_unispeech_sat import UniSpeechSatFeatureEncoder, UniSpeechSatFeedForward

from ..modeling.attach.stretches import in_stretches
from ..modeling.classes import Family, long_config
from ..modeling.family.audio_config import LongAudioConfig
from ..modeling.family.audio_rule import WAV2VEC2

FAMILY = Family(
    long_config(__name__, LongAudioConfig, UniSpeechSatConfig),
    mixin=in_stretches(__name__, UniSpeechSatFeatureEncoder, UniSpeechSatFeedForward),
    rule=WAV2VEC2,
)
