"""LongNemotronAsrStreamingForRNNT: a cache-aware FastConformer (:mod:`.nemotron_asr_streaming_encoder`) with a recurrent transducer."""

from transformers.models.nemotron_asr_streaming.configuration_nemotron_asr_streaming import NemotronAsrStreamingConfig

from ..modeling.classes import Family, long_config
from ..modeling.family.held_encoder import LongHeldEncoderConfig
from .nemotron_asr_streaming_encoder import NEMOTRON, LongNemotronAsrStreamingEncoderConfig, own_attention

FAMILY = Family(
    long_config(__name__, LongHeldEncoderConfig, NemotronAsrStreamingConfig, encoder_class=LongNemotronAsrStreamingEncoderConfig),
    classes=("NemotronAsrStreamingForRNNT",),
    own_attention=own_attention,
    rule=NEMOTRON,
)
