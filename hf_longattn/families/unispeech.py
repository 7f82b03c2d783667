"""LongUniSpeech: UniSpeech (Wang et al. 2021), wav2vec 2.0 pre-trained with transcripts as well."""

from transformers.models.unispeech.configuration_unispeech import UniSpeechConfig
from transformers.models.unispeech.modeling_unispeech import UniSpeechFeatureEncoder, UniSpeechFeedForward

from ..modeling.attach.stretches import in_stretches
from ..modeling.classes import Family, long_config
from ..modeling.family.audio_config import LongAudioConfig
from ..modeling.family.audio_rule import WAV2VEC2

FAMILY = Family(
    long_config(__name__, LongAudioConfig, UniSpeechConfig),
    mixin=in_stretches(__name__, UniSpeechFeatureEncoder, UniSpeechFeedForward),
    rule=WAV2VEC2,
)
