"""LongHubert: HuBERT (Hsu et al. 2021), frames of 20 ms by convolutions over samples, positions by one over frames."""

from transformers.models.hubert.configuration_hubert import HubertConfig
from transformers.models.hubert.modeling_hubert import HubertFeatureEncoder, HubertFeedForward

from ..modeling.attach.custom_attention import replacing
from ..modeling.attach.stretches import FeatureEncoderInStretches, FramesInStretches
from ..modeling.classes import lazy_classes
from ..modeling.family.audio_config import LongAudioConfig
from ..modeling.family.audio_rule import AudioRule
from ..modeling.family.definition import Family, long_config
from ..modeling.family.stream_rule import WAV2VEC2_STREAM, normalised_over_time

FAMILY = Family(
    long_config(__name__, LongAudioConfig, HubertConfig),
    mixin=replacing(__name__, {HubertFeatureEncoder: FeatureEncoderInStretches, HubertFeedForward: FramesInStretches}),
    rule=AudioRule(
        why_chunks_differ=normalised_over_time, why_padding_changes=normalised_over_time, hands_keywords_down=False, stream=WAV2VEC2_STREAM
    ),
)

__getattr__ = lazy_classes(FAMILY, globals())
