"""LongNemotronAsrStreamingForRNNT: a cache-aware FastConformer (:mod:`.nemotron_asr_streaming_encoder`) with a recurrent transducer."""

from transformers.models.nemotron_asr_streaming.configuration_nemotron_asr_streaming import NemotronAsrStreamingConfig

from ..modeling.family.held_encoder import with_head
from .nemotron_asr_streaming_encoder import FAMILY as ENCODER

FAMILY = with_head(__name__, NemotronAsrStreamingConfig, "NemotronAsrStreamingForRNNT", ENCODER)
