"""LongNemotronAsrStreamingForRNNT: a cache-aware FastConformer (:mod:`.nemotron_asr_streaming_encoder`) with a recurrent transducer."""

from transformers.models.nemotron_asr_streaming.configuration_nemotron_asr_streaming import NemotronAsrStreamingConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.definition import Family
from ..modeling.family.held_encoder import LongHeldEncoderConfig
from .nemotron_asr_streaming_encoder import NEMOTRON, LongNemotronAsrStreamingEncoderConfig, own_attention


class LongNemotronAsrStreamingConfig(LongHeldEncoderConfig, NemotronAsrStreamingConfig):
    """NemotronAsrStreamingConfig with ``long_attention`` of the encoder; by default the encoder config's chunks."""

    model_type = "long_nemotron_asr_streaming"
    encoder_class = LongNemotronAsrStreamingEncoderConfig


FAMILY = Family(
    LongNemotronAsrStreamingConfig,
    classes=("NemotronAsrStreamingForRNNT",),
    own_attention=own_attention,
    rule=NEMOTRON,
)

__getattr__ = lazy_classes(FAMILY, globals())
