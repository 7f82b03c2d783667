"""LongHubert: HuBERT (Hsu et al. 2021), frames of 20 ms by convolutions over samples, positions by one over frames."""

from dataclasses import replace

from transformers.models.hubert.configuration_hubert import HubertConfig
from transformers.models.hubert.modeling_hubert import HubertFeatureEncoder, HubertFeedForward

from ..modeling.attach.sound_chunks import in_chunks
from ..modeling.classes import Family, long_config
from ..modeling.family.audio_config import LongAudioConfig
from ..modeling.family.audio_spec import WAV2VEC2

FAMILY = Family(
    long_config(__name__, LongAudioConfig, HubertConfig),
    mixin=in_chunks(__name__, HubertFeatureEncoder, HubertFeedForward),
    spec=replace(WAV2VEC2, outputs=None, hands_keywords_down=False),
)
