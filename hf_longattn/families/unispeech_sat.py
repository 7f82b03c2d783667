"""LongUniSpeechSat: UniSpeech-SAT (Chen et al. 2021), HuBERT pre-trained to tell speakers apart."""

from transformers.models.unispeech_sat.configuration_unispeech_sat import UniSpeechSatConfig
from transformers.models.unispeech_sat.modeling_unispeech_sat import UniSpeechSatFeatureEncoder, UniSpeechSatFeedForward

from ..modeling.attach.custom_attention import replacing
from ..modeling.attach.stretches import FeatureEncoderInStretches, FramesInStretches
from ..modeling.classes import lazy_classes
from ..modeling.family.audio_config import LongAudioConfig
from ..modeling.family.audio_rule import AudioRule, adapted
from ..modeling.family.definition import Family, long_config
from ..modeling.family.stream_rule import WAV2VEC2_STREAM, normalised_over_time

FAMILY = Family(
    long_config(__name__, LongAudioConfig, UniSpeechSatConfig),
    mixin=replacing(__name__, {UniSpeechSatFeatureEncoder: FeatureEncoderInStretches, UniSpeechSatFeedForward: FramesInStretches}),
    rule=AudioRule(
        outputs=adapted, why_chunks_differ=normalised_over_time, why_padding_changes=normalised_over_time, stream=WAV2VEC2_STREAM
    ),
)

__getattr__ = lazy_classes(FAMILY, globals())
